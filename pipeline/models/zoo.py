"""The table of known networks. It holds facts only; torch is imported when a network is built."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.host.extras import install_command
from pipeline.models import libraries
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
    INSTALLED = "of the installed library"  # any name of timm or torchvision, see libraries


@dataclass(frozen=True, kw_only=True)
class Model:
    """One network of one library, with one published checkpoint.

    `top1` and `top5` (in %), `flops` (in 10^9) and `params` (in 10^6) are the documents' figures; None where
    they give none. Each document counts flops differently, see `cost.count`. `url` is where
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


# Layers -> blocks in each stage; the two networks of 200 layers differ.
_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_DEPTHS_OF_200 = {Design.IRESNET: (3, 24, 36, 3), Design.PADDLE_VD: (3, 12, 48, 3)}


def _row(library: str, name: str, design: Design, *figures: float, size: int = 224) -> Model:
    """Return a row; `figures` are top-1, top-5, flops and params of the documents, or nothing."""
    layers = int(re.findall(r"\d+", name)[0])
    top1, top5, flops, params = figures or (None, None, None, None)
    return Model(
        library=library,
        name=name,
        design=design,
        depths=_DEPTHS_OF_200[design] if layers == 200 else _DEPTHS[layers],
        bottleneck=layers >= 50,
        size=size,
        top1=top1,
        top5=top5,
        flops=flops,
        params=params,
        url=address_of(library, name),
        sha256=digest_of(library, name),
    )


MODELS: tuple[Model, ...] = (
    *(_row("torchvision", f"resnet{layers}", Design.RESNET) for layers in _DEPTHS),
    _row("torchvision", "wide_resnet50_2", Design.WIDE, 78.468, 94.086, 11.456, 68.883),
    _row("torchvision", "wide_resnet101_2", Design.WIDE, 78.848, 94.284, 22.838, 126.887),
    *(_row("timm", f"resnet{layers}", Design.RESNET) for layers in _DEPTHS),
    _row("timm", "resnet50c", Design.RESNET_C),
    _row("timm", "resnet50d", Design.RESNET_D),
    _row("timm", "wide_resnet50_2", Design.WIDE, 81.452, 95.530, 11.456, 68.883),
    _row("timm", "wide_resnet101_2", Design.WIDE, 78.854, 94.290, 22.838, 126.887),
    _row("official", "iresnet18", Design.IRESNET),
    _row("official", "iresnet34", Design.IRESNET),
    _row("official", "iresnet50", Design.IRESNET, 77.168, 93.588, 9.277, 25.557),
    _row("official", "iresnet101", Design.IRESNET, 78.632, 94.238, 17.572, 44.549),
    _row("official", "iresnet152", Design.IRESNET, 79.154, 94.508, 25.878, 60.193),
    _row("official", "iresnet200", Design.IRESNET, 79.308, 94.626, 33.727, 64.674),
    _row("paddleclas", "ResNet18", Design.PADDLE, 71.0, 89.9, 3.660, 11.690),
    _row("paddleclas", "ResNet18_vd", Design.PADDLE_VD, 72.3, 90.8, 4.140, 11.710),
    _row("paddleclas", "ResNet34", Design.PADDLE, 74.6, 92.1, 7.360, 21.800),
    _row("paddleclas", "ResNet34_vd", Design.PADDLE_VD, 76.0, 93.0, 7.390, 21.820),
    _row("paddleclas", "ResNet34_vd_ssld", Design.PADDLE_VD, 79.7, 94.9, 7.390, 21.820),
    _row("paddleclas", "ResNet50", Design.PADDLE, 76.5, 93.0, 8.190, 25.560),
    _row("paddleclas", "ResNet50_vc", Design.PADDLE_VC, 78.4, 94.0, 8.670, 25.580),
    _row("paddleclas", "ResNet50_vd", Design.PADDLE_VD, 79.1, 94.4, 8.670, 25.580),
    _row("paddleclas", "ResNet50_vd_ssld", Design.PADDLE_VD, 83.0, 96.4, 8.670, 25.580),
    _row("paddleclas", "Fix_ResNet50_vd_ssld", Design.PADDLE_VD, 84.0, 97.0, 17.696, 25.580, size=320),
    _row("paddleclas", "ResNet101", Design.PADDLE, 77.6, 93.6, 15.520, 44.550),
    _row("paddleclas", "ResNet101_vd", Design.PADDLE_VD, 80.2, 95.0, 16.100, 44.570),
    _row("paddleclas", "ResNet101_vd_ssld", Design.PADDLE_VD, 83.7, 96.7, 16.100, 44.570),
    _row("paddleclas", "ResNet152", Design.PADDLE, 78.3, 94.0, 23.050, 60.190),
    _row("paddleclas", "ResNet152_vd", Design.PADDLE_VD, 80.6, 95.3, 23.530, 60.210),
    _row("paddleclas", "ResNet200_vd", Design.PADDLE_VD, 80.9, 95.3, 30.530, 74.740),
)


def find_model(library: str, name: str, where: str = "frontend.model") -> Model:
    """Return the row of a network; of timm and torchvision those of the installed library too.

    Args:
        where: the key or flag that gave the name, for errors.

    Raises:
        ConfigError: the library is not known or not installed, or has no such network.
    """
    known = {model.name: model for model in MODELS if model.library == library}
    if not known:
        listed = ", ".join(sorted({model.library for model in MODELS}))
        key = "frontend.type" if where == "frontend.model" else where
        raise ConfigError(f"{key}: no networks of {library!r} are known; wanted {listed}, or onnx")
    if name not in known and library in libraries.LIBRARIES:
        return _installed(library, name, where)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise ConfigError(f"{where}: {library} has no network {name!r}; {hint}")
    return known[name]


def _installed(library: str, name: str, where: str) -> Model:
    """Return a row for a network of the installed library."""
    if not libraries.is_installed(library):
        known = [model.name for model in MODELS if model.library == library]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        wanted = f"needs {library} itself, which is not installed; run: {install_command(library)}"
        if near:  # a slip of the keyboard wants no gigabyte
            raise ConfigError(f"{where}: {name!r}: did you mean {near[0]!r}? Any other {wanted}")
        raise ConfigError(f"{where}: {name!r} {wanted} (without it: {', '.join(known)})")
    libraries.check(library, name, where)
    try:
        size = libraries.recipe(library, name).crop_hw[0]
    except ConfigError:  # without a record; init asks for the size
        size = 224
    return Model(library=library, name=name, design=Design.INSTALLED, depths=(), bottleneck=False, size=size)


def library_version(library: str, name: str | None) -> str | None:
    """Return the version of the installed library that makes a network; None for those that are made here."""
    if library not in libraries.LIBRARIES or any((row.library, row.name) == (library, name) for row in MODELS):
        return None
    return libraries.version_of(library)


def build_network(model: Model, num_classes: int = 1000, hw: tuple[int, int] | None = None) -> nn.Module:
    """Return the network in evaluation mode, with the weights PyTorch starts with.

    Args:
        hw: height and width of the input, for networks of an installed library whose parameters depend on them.
    """
    if model.design is Design.INSTALLED:
        return libraries.build(model.library, model.name, num_classes, hw)
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
