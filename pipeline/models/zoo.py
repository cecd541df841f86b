"""The table of known networks. It holds facts only; torch is imported when a network is built."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Model:
    """One network of one library.

    `top1` and `top5` are the published ImageNet accuracies in %, of the checkpoint the documents name; None where the
    documents name none.
    """

    library: str  # frontend.type
    name: str  # frontend.model
    block: str  # class in models/resnet.py
    depths: tuple[int, ...]  # blocks in each stage
    base_width: int = 64  # channels of a bottleneck's 3x3 convolution in stage one
    top1: float | None = None
    top5: float | None = None


def _resnets(library: str) -> list[Model]:
    return [
        Model(library=library, name="resnet18", block="BasicBlock", depths=(2, 2, 2, 2)),
        Model(library=library, name="resnet34", block="BasicBlock", depths=(3, 4, 6, 3)),
        Model(library=library, name="resnet50", block="Bottleneck", depths=(3, 4, 6, 3)),
        Model(library=library, name="resnet101", block="Bottleneck", depths=(3, 4, 23, 3)),
        Model(library=library, name="resnet152", block="Bottleneck", depths=(3, 8, 36, 3)),
    ]


def _wide(library: str, name: str, depths: tuple[int, ...], top1: float, top5: float) -> Model:
    return Model(library=library, name=name, block="Bottleneck", depths=depths, base_width=128, top1=top1, top5=top5)


MODELS: tuple[Model, ...] = (
    *_resnets("torchvision"),
    _wide("torchvision", "wide_resnet50_2", (3, 4, 6, 3), 78.468, 94.086),
    _wide("torchvision", "wide_resnet101_2", (3, 4, 23, 3), 78.848, 94.284),
    *_resnets("timm"),
    _wide("timm", "wide_resnet50_2", (3, 4, 6, 3), 81.452, 95.530),
    _wide("timm", "wide_resnet101_2", (3, 4, 23, 3), 78.854, 94.290),
)


def find_model(library: str, name: str) -> Model:
    """Return the row of a network.

    Raises:
        ConfigError: the library is not in the table, or has no such network.
    """
    known = {model.name: model for model in MODELS if model.library == library}
    if not known:
        libraries = ", ".join(sorted({model.library for model in MODELS}))
        raise ConfigError(f"frontend.type: no networks of {library!r} are known; wanted {libraries}, or onnx")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise ConfigError(f"frontend.model: {library} has no network {name!r}; {hint}")
    return known[name]


def build_network(model: Model, num_classes: int = 1000) -> nn.Module:
    """Return the network in evaluation mode, with the weights PyTorch starts with."""
    from pipeline.models import resnet

    network = resnet.ResNet(getattr(resnet, model.block), model.depths, model.base_width, num_classes)
    return network.eval()
