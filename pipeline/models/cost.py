"""What a network costs: parameters and multiply-accumulates, counted on shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.models import zoo

# Multiply-accumulates of a ResNet at 224 px, for each parameter: 155 to 233, those of the table.
_MACS_A_PARAMETER = 170
_CLASSES = 1000  # ImageNet's


@dataclass(frozen=True)
class NetworkCost:
    """Parameters, and multiply-accumulates of one image, a convolution's and a linear layer's only."""

    params: int
    macs: int


def estimate(model: zoo.Model) -> NetworkCost:
    """Return what `count` does, multiply-accumulates within 30% for a ResNet, without the 2 s that counting imports."""
    if model.design is zoo.Design.INSTALLED:
        return count(model)
    with torch.device("meta"):
        params = sum(each.numel() for each in zoo.build_network(model, _CLASSES).parameters())
    return NetworkCost(params, round(_MACS_A_PARAMETER * params * (model.size / 224) ** 2))


def count(model: zoo.Model) -> NetworkCost:
    """Count a network of the table at its own image size and 1000 classes, without making its weights.

    What others print as "flops" is this number, twice it, or it with norms, ReLUs and pools added.
    """
    with torch.device("meta"), torch.inference_mode():
        network = zoo.build_network(model, _CLASSES)
        macs = 0

        def add(module: nn.Module, inputs: object, output: Tensor) -> None:
            nonlocal macs
            assert isinstance(module, (nn.Conv2d, nn.Linear))
            macs += output.numel() * module.weight[0].numel()  # a weight's row makes one value of the output

        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(add)
        network(torch.empty(1, 3, model.size, model.size))
    return NetworkCost(sum(parameter.numel() for parameter in network.parameters()), macs)
