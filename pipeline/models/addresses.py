"""The addresses where each library publishes the checkpoints of its networks.

The digits in a file name such as `-f37072fd` are the first digits of the file's sha256, a convention of torch.hub that
torchvision and timm (0.6.5) follow. PaddleClas and iResNet publish no hash, so their files are downloaded by hand.
"""

from __future__ import annotations

import re

_PYTORCH = "https://download.pytorch.org/models"
_TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download"
_PADDLE = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph"
_DRIVE = "https://drive.google.com/open?id="

_TORCHVISION_FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet152": "resnet152-394f9c45.pth",
    "wide_resnet50_2": "wide_resnet50_2-95faca4d.pth",
    "wide_resnet101_2": "wide_resnet101_2-32ee1156.pth",
}
_TIMM_FILES = {
    "resnet18": f"{_PYTORCH}/resnet18-5c106cde.pth",
    "resnet34": f"{_TIMM}/v0.1-weights/resnet34-43635321.pth",
    "resnet50": f"{_TIMM}/v0.1-rsb-weights/resnet50_a1_0-14fe96d1.pth",
    "resnet50d": f"{_TIMM}/v0.1-weights/resnet50d_ra2-464e36ba.pth",
    "resnet101": f"{_TIMM}/v0.1-rsb-weights/resnet101_a1h-36d3f2aa.pth",
    "resnet152": f"{_TIMM}/v0.1-rsb-weights/resnet152_a1h-dc400468.pth",
    "wide_resnet50_2": f"{_TIMM}/v0.1-weights/wide_resnet50_racm-8234f177.pth",
    "wide_resnet101_2": f"{_PYTORCH}/wide_resnet101_2-32ee1156.pth",
}
_IRESNET_FILES = {
    "iresnet50": f"{_DRIVE}1Waw3ob8KPXCY9iCLdAD6RUA0nvVguc6K",
    "iresnet101": f"{_DRIVE}1cZ4XhwZfUOm_o0WZvenknHIqgeqkY34y",
    "iresnet152": f"{_DRIVE}10heFLYX7VNlaSrDy4SZbdOOV9xwzwyli",
    "iresnet200": f"{_DRIVE}1Ao-f--jNU7MYPqSW8UMonXVrq3mkLRpW",
}
_PADDLE_NAMES = (
    *("ResNet18", "ResNet18_vd", "ResNet34", "ResNet34_vd", "ResNet34_vd_ssld", "ResNet50", "ResNet50_vd"),
    *("ResNet50_vd_ssld", "ResNet101", "ResNet101_vd", "ResNet101_vd_ssld", "ResNet152", "ResNet152_vd"),
    "ResNet200_vd",
)

ADDRESSES: dict[tuple[str, str], str] = {  # (library, name) -> address
    **{("torchvision", name): f"{_PYTORCH}/{file}" for name, file in _TORCHVISION_FILES.items()},
    **{("timm", name): address for name, address in _TIMM_FILES.items()},
    **{("official", name): address for name, address in _IRESNET_FILES.items()},
    **{("paddleclas", name): f"{_PADDLE}/legendary_models/{name}_pretrained.pdparams" for name in _PADDLE_NAMES},
    ("paddleclas", "ResNet50_vc"): f"{_PADDLE}/ResNet50_vc_pretrained.pdparams",
}


def address_of(library: str, name: str) -> str | None:
    return ADDRESSES.get((library, name))


def digest_of(library: str, name: str) -> str | None:
    """Return the first digits of the sha256 of a network's published file; None where none are published."""
    found = re.search(r"-([0-9a-f]{8,64})\.pth$", ADDRESSES.get((library, name), ""))
    return found[1] if found else None
