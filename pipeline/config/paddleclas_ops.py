"""Operators of PaddleClas's preprocessing -> those of build files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.config.schema import shown
from pipeline.errors import ConfigError

_FILTERS = {
    ("cv2", "bilinear"): "BILINEAR_CV",
    ("pil", "bilinear"): "BILINEAR_PILLOW",
    ("pil", "bicubic"): "BICUBIC_PILLOW",
    ("pil", "lanczos"): "LANCZOS_PILLOW",
    ("pil", "nearest"): "NEAREST_PILLOW",
}
_SCALE = 1 / 255
_SCALE_TOLERANCE = 1e-6  # configs write it as 0.00392157


def process_ops(path: str, transforms: Sequence[object]) -> Iterator[dict[str, Any]]:
    """Yield the operators of a build file for those of a config.

    Args:
        path: of the config, for errors.
        transforms: `{operator: arguments}` each.

    Raises:
        ConfigError: an operator, or an argument of one, is unknown here.
    """
    yield {"type": "DecodeImage"}
    for item in transforms:
        name, values = next(iter(item.items())) if isinstance(item, dict) and len(item) == 1 else (None, None)
        if name == "DecodeImage" and isinstance(values, dict) and values.get("to_rgb", True) is not True:
            yield {"type": "CvtColor", "code": "COLOR_RGB2BGR"}
        elif name != "DecodeImage":
            yield _process_op(path, name, values if isinstance(values, dict) else {})


def _process_op(path: str, name: object, values: Mapping[str, Any]) -> dict[str, Any]:
    if name == "ResizeImage":
        return _resize(path, values)
    if name == "CropImage":
        return {"type": "CenterCrop", "crop_size": _hw(values.get("size"))}
    if name == "NormalizeImage":
        scale = _number(values.get("scale", _SCALE))
        if scale is None or abs(scale - _SCALE) > _SCALE_TOLERANCE:
            raise ConfigError(f"{path} NormalizeImage.scale: expected 1/255, got {shown(values.get('scale'))}")
        return {"type": "Normalize", "mean": values.get("mean"), "std": values.get("std")}
    if name == "ToCHWImage":
        return {"type": "ToTensor"}
    raise ConfigError(
        f"{path}: operator {shown(name)} of the preprocessing is not known here; known: DecodeImage, ResizeImage, "
        "CropImage, NormalizeImage, ToCHWImage"
    )


def _resize(path: str, values: Mapping[str, Any]) -> dict[str, Any]:
    backend = str(values.get("backend", "cv2")).lower()
    interpolation = str(values.get("interpolation") or "bilinear").lower()
    known = _FILTERS.get((backend, interpolation))
    if known is None:
        raise ConfigError(
            f"{path} ResizeImage: interpolation {interpolation} of {backend} is not known here; known: "
            + ", ".join(f"{name} of {library}" for library, name in _FILTERS)
        )
    size = values.get("resize_short") or _hw(values.get("size"))
    return {"type": "Resize", "size": size, "interpolation": known}


def _hw(size: object) -> object:
    """[width, height], as PaddleClas writes it, to [height, width]."""
    return size[::-1] if isinstance(size, list) else size


def _number(value: object) -> float | None:
    """A number, or text such as 1.0/255.0."""
    if isinstance(value, int | float):
        return float(value)
    parts = re.fullmatch(r"\s*(\d+\.?\d*)\s*/\s*(\d+\.?\d*)\s*", str(value))
    return float(parts[1]) / float(parts[2]) if parts and float(parts[2]) else None
