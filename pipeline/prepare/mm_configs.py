"""How images are prepared, by an OpenMMLab config beside a checkpoint; it is Python, which is parsed and never run."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.models.recipe import Recipe
from pipeline.models.record_values import Numbers

_PIXEL = 255.0
_MOST = 65_536  # beyond, a number is no mean or std of pixels
_LARGEST = 1 << 18  # bytes of a config; OpenMMLab's have some 10,000
# Of mmpretrain, and of mmcls before it; with whether images become RGB where that is not said.
_NORMALIZERS = {"data_preprocessor": False, "img_norm_cfg": True}
_BASE = "_base_"  # other configs, whose values hold where this one says nothing
_PIPELINES = ("test_pipeline", "val_pipeline")
_FILTERS = {
    ("cv2", "bilinear"): "BILINEAR_CV",
    ("pillow", "bilinear"): "BILINEAR_PILLOW",
    ("pillow", "bicubic"): "BICUBIC_PILLOW",
}
_CALLS = frozenset({"dict"})


def read_mm_config(model: Path) -> Recipe | None:
    """Return the preprocessing of the only config beside a checkpoint; None where there is none, or it says otherwise.

    Mean, std and the order of channels, a resize of the shorter side and a crop of the centre are read, where they are
    written as plain values.
    """
    found = {path: recipe for path in sorted(model.parent.glob("*.py")) if (recipe := _read(path)) is not None}
    return next(iter(found.values())) if len(found) == 1 else None


def _read(path: Path) -> Recipe | None:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that is somebody else's
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    values: dict[str, Any] = dict(_assigned(tree))
    model = values.get("model")
    inner = model.get("data_preprocessor") if isinstance(model, dict) else None
    name = next((name for name in _NORMALIZERS if isinstance(values.get(name), dict)), "data_preprocessor")
    normalizer = values[name] if isinstance(values.get(name), dict) else inner
    steps: Any = next((values[name] for name in _PIPELINES if isinstance(values.get(name), list)), None)
    if not isinstance(normalizer, dict) or steps is None:
        return None
    mean, std = _numbers(normalizer.get("mean")), _numbers(normalizer.get("std"))
    sizes = _sizes([step for step in steps if isinstance(step, dict)])
    usual = None if _BASE in values else _NORMALIZERS[name]
    rgb = normalizer.get("to_rgb", normalizer.get("bgr_to_rgb", usual))
    if mean is None or std is None or min(std) <= 0 or sizes is None or not isinstance(rgb, bool):
        return None
    resize, crop, interpolation = sizes
    source = f"{path} (OpenMMLab, which also turns images as their EXIF says)"
    return Recipe((crop, crop), resize, interpolation, mean, std, source, bgr=not rgb)


def _assigned(tree: ast.Module) -> Iterator[tuple[str, object]]:
    """Yield the names of a config that are given plain values, with these; None for those that are then changed."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, _value(node.value)
        else:  # as test_pipeline[1].update(scale=384)
            yield from ((part.id, None) for part in ast.walk(node) if isinstance(part, ast.Name))


def _value(node: ast.expr) -> Any:
    """Return a plain value, with `dict(...)` as configs write it; None in the place of what is computed."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS and not node.args:
        return {part.arg: _value(part.value) for part in node.keywords if part.arg is not None}
    if isinstance(node, ast.Dict):
        keys = [None if key is None else _value(key) for key in node.keys]
        return {key: _value(value) for key, value in zip(keys, node.values, strict=True) if isinstance(key, str)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(part) for part in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _numbers(value: object) -> Numbers | None:
    """Return mean or std of a 0..1 image: configs have them of pixels."""
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(each, int | float) for each in value):
        return None
    if any(isinstance(each, bool) or not abs(each) <= _MOST for each in value):
        return None
    first, second, third = (float(f"{each / _PIXEL:.6g}") for each in value)
    return first, second, third


def _sizes(steps: list[Mapping[str, Any]]) -> tuple[int, int, str] | None:
    """Return the shorter side, the crop and the filter; None of any other steps."""
    resizes = [step for step in steps if "Resize" in str(step.get("type"))]
    crops = [step for step in steps if "Crop" in str(step.get("type"))]
    if len(resizes) != 1 or len(crops) != 1 or crops[0]["type"] != "CenterCrop":
        return None
    resize, crop = resizes[0], crops[0].get("crop_size")
    if resize["type"] == "ResizeEdge":  # of mmpretrain
        side = resize.get("scale") if resize.get("edge", "short") == "short" else None
    else:  # of mmcls, whose size of (256, -1) is the shorter side
        size = resize.get("size")
        side = size[0] if resize["type"] == "Resize" and isinstance(size, list) and size[1:] == [-1] else None
    filter_name = _FILTERS.get((str(resize.get("backend", "cv2")), str(resize.get("interpolation", "bilinear"))))
    if isinstance(side, int) and isinstance(crop, int) and filter_name is not None and crop <= side:
        return side, crop, filter_name
    return None
