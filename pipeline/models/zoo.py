"""The table of known networks. It holds facts only; torch is imported when a network is built."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.models.addresses import address_of, digest_of

if TYPE_CHECKING:
    from torch import nn


class Design(Enum):
    """How a network is made; each is a class of models/, perhaps with options."""

    RESNET = "ResNet"
    RESNET_C = "ResNet-C"
    RESNET_D = "ResNet-D"
    WIDE = "Wide ResNet"
    IRESNET = "iResNet"
    PADDLE = "PaddleClas ResNet"
    PADDLE_VC = "PaddleClas ResNet_vc"
    PADDLE_VD = "PaddleClas ResNet_vd"


@dataclass(frozen=True, kw_only=True)
class Model:
    """One network of one library, with one published checkpoint.

    `top1` and `top5` (in %), `flops` (in 10^9) and `params` (in 10^6) are what the documents say of it; None where
    they are silent. The documents count flops each in their own way, `cost.count` says what they are. `url` is where
    the library publishes the checkpoint; `sha256` its digest in hex, or the first 8 digits or more. Without a digest it
    is for the user to fetch.
    """

    library: str  # frontend.type
    name: str  # frontend.model
    design: Design
    depths: tuple[int, ...]  # blocks in each stage
    bottleneck: bool  # whether a block is 1x1, 3x3, 1x1 convolutions; two 3x3 otherwise
    size: int = 224  # side of the images it was trained and measured on, px
    top1: float | None = None
    top5: float | None = None
    flops: float | None = None
    params: float | None = None
    url: str | None = None
    sha256: str | None = None


# Layers -> blocks in each stage. The two networks of 200 layers differ.
_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_IRESNET_DEPTHS = {**_DEPTHS, 200: (3, 24, 36, 3)}
_PADDLE_DEPTHS = {**_DEPTHS, 200: (3, 12, 48, 3)}


def _resnet(library: str, layers: int, suffix: str = "", design: Design = Design.RESNET) -> Model:
    return Model(
        library=library,
        name=f"resnet{layers}{suffix}",
        design=design,
        depths=_DEPTHS[layers],
        bottleneck=layers >= 50,
    )


def _wide(library: str, layers: int, top1: float, top5: float, flops: float, params: float) -> Model:
    return Model(
        library=library,
        name=f"wide_resnet{layers}_2",
        design=Design.WIDE,
        depths=_DEPTHS[layers],
        bottleneck=True,
        top1=top1,
        top5=top5,
        flops=flops,
        params=params,
    )


def _iresnet(
    layers: int,
    top1: float | None = None,
    top5: float | None = None,
    flops: float | None = None,
    params: float | None = None,
) -> Model:
    return Model(
        library="official",
        name=f"iresnet{layers}",
        design=Design.IRESNET,
        depths=_IRESNET_DEPTHS[layers],
        bottleneck=layers >= 50,
        top1=top1,
        top5=top5,
        flops=flops,
        params=params,
    )


def _paddle(name: str, design: Design, top1: float, top5: float, flops: float, params: float, size: int = 224) -> Model:
    layers = int(re.findall(r"ResNet(\d+)", name)[0])
    return Model(
        library="paddleclas",
        name=name,
        design=design,
        depths=_PADDLE_DEPTHS[layers],
        bottleneck=layers >= 50,
        size=size,
        top1=top1,
        top5=top5,
        flops=flops,
        params=params,
    )


_ROWS: tuple[Model, ...] = (
    *(_resnet("torchvision", layers) for layers in _DEPTHS),
    _wide("torchvision", 50, 78.468, 94.086, 11.456, 68.883),
    _wide("torchvision", 101, 78.848, 94.284, 22.838, 126.887),
    *(_resnet("timm", layers) for layers in _DEPTHS),
    _resnet("timm", 50, "c", Design.RESNET_C),
    _resnet("timm", 50, "d", Design.RESNET_D),
    _wide("timm", 50, 81.452, 95.530, 11.456, 68.883),
    _wide("timm", 101, 78.854, 94.290, 22.838, 126.887),
    _iresnet(18),
    _iresnet(34),
    _iresnet(50, 77.168, 93.588, 9.277, 25.557),
    _iresnet(101, 78.632, 94.238, 17.572, 44.549),
    _iresnet(152, 79.154, 94.508, 25.878, 60.193),
    _iresnet(200, 79.308, 94.626, 33.727, 64.674),
    _paddle("ResNet18", Design.PADDLE, 71.0, 89.9, 3.660, 11.690),
    _paddle("ResNet18_vd", Design.PADDLE_VD, 72.3, 90.8, 4.140, 11.710),
    _paddle("ResNet34", Design.PADDLE, 74.6, 92.1, 7.360, 21.800),
    _paddle("ResNet34_vd", Design.PADDLE_VD, 76.0, 93.0, 7.390, 21.820),
    _paddle("ResNet34_vd_ssld", Design.PADDLE_VD, 79.7, 94.9, 7.390, 21.820),
    _paddle("ResNet50", Design.PADDLE, 76.5, 93.0, 8.190, 25.560),
    _paddle("ResNet50_vc", Design.PADDLE_VC, 78.4, 94.0, 8.670, 25.580),
    _paddle("ResNet50_vd", Design.PADDLE_VD, 79.1, 94.4, 8.670, 25.580),
    _paddle("ResNet50_vd_ssld", Design.PADDLE_VD, 83.0, 96.4, 8.670, 25.580),
    _paddle("Fix_ResNet50_vd_ssld", Design.PADDLE_VD, 84.0, 97.0, 17.696, 25.580, size=320),
    _paddle("ResNet101", Design.PADDLE, 77.6, 93.6, 15.520, 44.550),
    _paddle("ResNet101_vd", Design.PADDLE_VD, 80.2, 95.0, 16.100, 44.570),
    _paddle("ResNet101_vd_ssld", Design.PADDLE_VD, 83.7, 96.7, 16.100, 44.570),
    _paddle("ResNet152", Design.PADDLE, 78.3, 94.0, 23.050, 60.190),
    _paddle("ResNet152_vd", Design.PADDLE_VD, 80.6, 95.3, 23.530, 60.210),
    _paddle("ResNet200_vd", Design.PADDLE_VD, 80.9, 95.3, 30.530, 74.740),
)

MODELS = tuple(
    replace(row, url=address_of(row.library, row.name), sha256=digest_of(row.library, row.name)) for row in _ROWS
)


# Suffixes of files that hold weights alone, without the graph.
WEIGHTS_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".pdparams")


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
    from pipeline.models import iresnet, paddle_resnet, resnet

    network: nn.Module
    match model.design:
        case Design.IRESNET:
            network = iresnet.IResNet(
                iresnet.Bottleneck if model.bottleneck else iresnet.BasicBlock, model.depths, num_classes
            )
        case Design.PADDLE | Design.PADDLE_VD:
            network = paddle_resnet.ResNet(
                paddle_resnet.BottleneckBlock if model.bottleneck else paddle_resnet.BasicBlock,
                model.depths,
                model.design is Design.PADDLE_VD,
                num_classes,
            )
        case Design.PADDLE_VC:
            network = paddle_resnet.ResNetVc(paddle_resnet.BottleneckBlock, model.depths, num_classes)
        case _:
            network = resnet.ResNet(
                resnet.Bottleneck if model.bottleneck else resnet.BasicBlock,
                model.depths,
                base_width=128 if model.design is Design.WIDE else 64,
                num_classes=num_classes,
                deep_stem=model.design in (Design.RESNET_C, Design.RESNET_D),
                average_shortcut=model.design is Design.RESNET_D,
            )
    return network.eval()
