"""A float32 ONNX model as a torch module, for the tools that start from torch: every tool then has the same weights.

Each node is a module of its own, since torchao 0.18's X86InductorQuantizer leaves layers that are called as functions
(`F.conv2d`) in float32 without a word; see findings/functional-layers-unquantized.sh.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

Attributes = dict[str, Any]
Weights = list[Tensor]


def padding(attributes: Attributes, operator: str) -> tuple[int, int]:
    pads = attributes.get("pads", [0, 0, 0, 0])
    assert pads[:2] == pads[2:], f"{operator}: pads {pads}, expected the same at either end"
    return pads[0], pads[1]


def conv(weights: Weights, attributes: Attributes) -> nn.Module:
    weight, bias = (*weights, None)[:2]
    assert weight is not None
    group = attributes.get("group", 1)
    layer = nn.Conv2d(
        weight.shape[1] * group,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=tuple(attributes.get("strides", (1, 1))),
        padding=padding(attributes, "Conv"),
        dilation=tuple(attributes.get("dilations", (1, 1))),
        groups=group,
        bias=bias is not None,
    )
    return with_weights(layer, weight, bias)


def gemm(weights: Weights, attributes: Attributes) -> nn.Module:
    assert attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA", 0)
    weight, bias = (*weights, None)[:2]
    assert weight is not None
    rows = weight if attributes.get("transB", 0) else weight.T.contiguous()
    return with_weights(nn.Linear(rows.shape[1], rows.shape[0], bias=bias is not None), rows, bias)


def with_weights(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer


def max_pool(_: Weights, attributes: Attributes) -> nn.Module:
    return nn.MaxPool2d(
        tuple(attributes["kernel_shape"]),
        tuple(attributes["strides"]),
        padding(attributes, "MaxPool"),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )


class Add(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


MODULES: dict[str, Callable[[Weights, Attributes], nn.Module]] = {
    "Add": lambda weights, attributes: Add(),
    "Conv": conv,
    "Flatten": lambda weights, attributes: nn.Flatten(attributes.get("axis", 1)),
    "Gemm": gemm,
    "GlobalAveragePool": lambda weights, attributes: nn.AdaptiveAvgPool2d(1),
    "MaxPool": max_pool,
    "Relu": lambda weights, attributes: nn.ReLU(),
}


class OnnxModule(nn.Module):
    """Computes the nodes of an ONNX graph in their order. Its operators are those of ResNets."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        graph = onnx.load(path).graph
        unknown = sorted({node.op_type for node in graph.node} - set(MODULES))
        if unknown:
            raise SystemExit(f"{path}: onnx_in_torch.py has no operator {unknown[0]}")
        stored = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
        self._given, self._made = graph.input[0].name, graph.output[0].name
        self._edges = [([name for name in node.input if name not in stored], node.output[0]) for node in graph.node]
        self.nodes = nn.ModuleList(
            MODULES[node.op_type]([stored[name] for name in node.input if name in stored], read_attributes(node))
            for node in graph.node
        )

    def forward(self, images: Tensor) -> Tensor:
        values = {self._given: images}
        for module, (given, made) in zip(self.nodes, self._edges, strict=True):
            values[made] = module(*(values[name] for name in given))
        return values[self._made]


def read_attributes(node: onnx.NodeProto) -> Attributes:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
