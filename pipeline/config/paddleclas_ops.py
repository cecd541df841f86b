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
# What PaddleClas takes where NormalizeImage does not say it.
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


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
        return _normalize(path, values)
    if name == "ToCHWImage":
        return {"type": "ToTensor"}
    raise ConfigError(
        f"{path}: operator {shown(name)} of the preprocessing is not known here; known: DecodeImage, ResizeImage, "
        "CropImage, NormalizeImage, ToCHWImage"
    )


def _normalize(path: str, values: Mapping[str, Any]) -> dict[str, Any]:
    said = values.get("scale")
    scale = _SCALE if said is None else _number(said)
    if scale is None or min(abs(scale - _SCALE), abs(scale - 1)) > _SCALE_TOLERANCE:
        raise ConfigError(f"{path} NormalizeImage.scale: expected 1/255 or 1, got {shown(said)}")
    mean, std = (values.get(key) or usual for key, usual in (("mean", _MEAN), ("std", _STD)))
    return {"type": "Normalize", "mean": mean, "std": std, **({} if scale < 1 / 2 else {"div255": False})}


def _resize(path: str, values: Mapping[str, Any]) -> dict[str, Any]:
    backend = str(values.get("backend", "cv2")).lower()
    interpolation = str(values.get("interpolation") or "bilinear").lower()
    known = _FILTERS.get((backend, interpolation))
    if known is None:
        raise ConfigError(
            f"{path} ResizeImage: interpolation {interpolation} of {backend} is not known here; known: "
            + ", ".join(f"{name} of {library}" for library, name in _FILTERS)
        )
    return {
        "type": "Resize",
        "size": values.get("resize_short") or _stretched(values.get("size")),
        "interpolation": known,
    }


def _stretched(size: object) -> object:
    """[height, width] of a `size`, which PaddleClas stretches to, one number too."""
    return [size, size] if isinstance(size, int) else _hw(size)


def _hw(size: object) -> object:
    """[width, height], as PaddleClas writes it, to [height, width]."""
    return size[::-1] if isinstance(size, list) else size


def _number(value: object) -> float | None:
    """A number, or text such as 1.0/255.0."""
    if isinstance(value, int | float):
        return float(value)
    parts = re.fullmatch(r"\s*(\d+\.?\d*)\s*/\s*(\d+\.?\d*)\s*", str(value))
    return float(parts[1]) / float(parts[2]) if parts and float(parts[2]) else None
