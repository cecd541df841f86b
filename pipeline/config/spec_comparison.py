"""Preprocessing compared and described: what the network gets, whatever the file that says so looks like."""

from __future__ import annotations

import numpy as np

from pipeline.config.vdsp import PreprocessSpec, ResizeMode, Triple


def difference(a: PreprocessSpec, b: PreprocessSpec) -> str | None:
    """What differs first in what the network gets: `<field> is <that of a> against <that of b>`. None if nothing does.

    Means and deviations compare as device files store them, in float16, in 0..1 or in 0..255 units. How a file writes
    the normalisation and the size of synthetic images do not count.
    """
    fields = (
        ("PreprocessAs", a.preprocess_as.value, b.preprocess_as.value),
        ("resize", _shown_resize(a), _shown_resize(b)),
        ("crop size", _shown_hw(a.crop_hw), _shown_hw(b.crop_hw)),
        ("crop offset", _shown_hw(a.crop_yx), _shown_hw(b.crop_yx)),
        ("resize filter", a.filter.value, b.filter.value),
        ("colour order", a.colour.value, b.colour.value),
    )
    for name, left, right in fields:
        if left != right:
            return f"{name} is {left} against {right}"
    for name, ours, theirs in (("mean", a.mean, b.mean), ("std", a.std, b.std)):
        if not all(_equal_in_float16(x, y) for x, y in zip(ours, theirs, strict=True)):
            return f"{name} is {_shown_numbers(ours)} against {_shown_numbers(theirs)}"
    return None


def same_normalisation(a: PreprocessSpec, b: PreprocessSpec) -> bool:
    """Tell whether two specs normalise alike; see `difference`."""
    pairs = zip((*a.mean, *a.std), (*b.mean, *b.std), strict=True)
    return a.colour is b.colour and all(_equal_in_float16(x, y) for x, y in pairs)


def _equal_in_float16(x: float, y: float) -> bool:
    # A file in 0..255 units was rounded there: 123.675 is stored as 123.6875, which 0..1 units would round otherwise.
    with np.errstate(over="ignore"):  # what float16 cannot hold is infinite on the device too
        return any(bool(np.float16(x * unit) == np.float16(y * unit)) for unit in (1.0, 255.0))


def describe(spec: PreprocessSpec) -> str:
    """Return what is done to the size of an image, in the words of a build file."""
    if spec.resize is ResizeMode.SHORTER_SIDE and spec.resize_hw is not None:
        resize = f"Resize {spec.resize_hw[0]} {spec.filter.value}, "
    else:
        resize = "" if spec.resize_hw is None else f"Resize {_shown_hw(spec.resize_hw)} {spec.filter.value}, "
    side = str(spec.crop_hw[0]) if spec.crop_hw[0] == spec.crop_hw[1] else _shown_hw(spec.crop_hw)
    return f"{resize}CenterCrop {side}"


def _shown_resize(spec: PreprocessSpec) -> str:
    if spec.resize_hw is None:
        return spec.resize.value
    size = str(spec.resize_hw[0]) if spec.resize is ResizeMode.SHORTER_SIDE else _shown_hw(spec.resize_hw)
    return f"{spec.resize.value} {size}"


def _shown_hw(hw: tuple[int, int] | None) -> str:
    return "the centre" if hw is None else f"[{hw[0]}, {hw[1]}]"


def _shown_numbers(values: Triple) -> str:
    return "[" + ", ".join(f"{x:.6g}" for x in values) + "]"
