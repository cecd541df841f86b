"""Pillow's resize where only a crop of it is wanted: the same bits, without what is cropped away."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.config.vdsp import ResizeFilter

FILTERS = {
    ResizeFilter.BILINEAR_PILLOW: Image.Resampling.BILINEAR,
    ResizeFilter.BICUBIC_PILLOW: Image.Resampling.BICUBIC,
    ResizeFilter.LANCZOS_PILLOW: Image.Resampling.LANCZOS,
    ResizeFilter.NEAREST_PILLOW: Image.Resampling.NEAREST,
}
_FLOAT32_INTEGERS = 2**24  # those up to it, and their parts by a power of two, are float32 numbers
_MOST_KNOWN = 4096  # geometries
_MOST_TRIED = 4_000_000  # pixels of an image: the trial needs some 10 bytes of each

Pair = tuple[int, int]
Span = tuple[float, float]  # of an axis: from, to


class Geometry(NamedTuple):
    """A resize and a crop."""

    hw: Pair  # of the image
    full_hw: Pair  # after the resize
    corner: Pair  # top, left of the crop
    crop_hw: Pair
    resize_filter: ResizeFilter


# Whether Pillow computes a part as it computes the whole; None: seen once, not tried yet.
_known: dict[Geometry, bool | None] = {}


def resize_and_crop(
    image: Image.Image, resize_filter: ResizeFilter, full_hw: Pair, corner: Pair, crop_hw: Pair
) -> Image.Image:
    """Return what resizing to `full_hw` and then cropping gives.

    Pillow can resize a part, a `box`: for 224 of 256 pixels in four fifths of the time. But it takes the box in
    float32, and chooses by the sizes whether rows or columns come first (since Pillow 13), which changes the rounding.
    So a part is taken only where no number is rounded and where Pillow gave the same for noise of these sizes. Sizes
    that are seen once are not worth that trial.

    Args:
        image: RGB; only read.
        corner: top, left of the crop in the resized image.
    """
    geometry = Geometry((image.height, image.width), full_hw, corner, crop_hw, resize_filter)
    return _resize_part(image, geometry) if _may_take_part(geometry) else resize_whole(image, geometry)


def resize_whole(image: Image.Image, geometry: Geometry) -> Image.Image:
    (top, left), (tall, wide) = geometry.corner, geometry.crop_hw
    resized = image.resize(geometry.full_hw[::-1], FILTERS[geometry.resize_filter])
    return resized.crop((left, top, left + wide, top + tall))


def _may_take_part(geometry: Geometry) -> bool:
    if geometry not in _known:
        if len(_known) < _MOST_KNOWN:
            _known[geometry] = None if _is_worth_trying(geometry) else False
        return False
    found = _known[geometry]
    if found is None:
        found = _known[geometry] = _try_part(geometry)
    return found


def _is_worth_trying(geometry: Geometry) -> bool:
    if geometry.resize_filter is ResizeFilter.NEAREST_PILLOW:  # finds its pixels in another way, in fixed point
        return False
    return geometry.hw[0] * geometry.hw[1] <= _MOST_TRIED and any(_spans(geometry))


def _try_part(geometry: Geometry) -> bool:
    """Tell whether Pillow computes a part of noise as it computes the whole."""
    pixels = np.random.default_rng(0).integers(0, 256, (*geometry.hw, 3), dtype=np.uint8)
    noise = Image.fromarray(pixels)
    return np.array_equal(np.asarray(_resize_part(noise, geometry)), np.asarray(resize_whole(noise, geometry)))


def _resize_part(image: Image.Image, geometry: Geometry) -> Image.Image:
    rows, columns = _spans(geometry)
    (top, left), (tall, wide) = geometry.corner, geometry.crop_hw
    size = (geometry.full_hw[1] if columns is None else wide, geometry.full_hw[0] if rows is None else tall)
    (above, below), (before, after) = rows or (0, image.height), columns or (0, image.width)
    resized = image.resize(size, FILTERS[geometry.resize_filter], box=(before, above, after, below))
    if rows is not None and columns is not None:
        return resized
    top, left = (top if rows is None else 0), (left if columns is None else 0)
    return resized.crop((left, top, left + wide, top + tall))


def _spans(geometry: Geometry) -> tuple[Span | None, Span | None]:
    """Return the rows and the columns that the crop is made of, as far as they are float32 numbers."""
    axes = zip(geometry.hw, geometry.full_hw, geometry.corner, geometry.crop_hw, strict=True)
    rows, columns = (find_span(*axis) for axis in axes)
    return rows, columns


def find_span(length: int, full: int, start: int, count: int) -> Span | None:
    """Return the part of an axis that makes pixels start .. start + count of a resize from `length` to `full`.

    Returns:
        None where its ends or its scale are no float32 numbers, or where the axis keeps its length.
    """
    step, parts = length // math.gcd(length, full), full // math.gcd(length, full)
    exact = parts & (parts - 1) == 0 and (start + count) * step <= _FLOAT32_INTEGERS
    if length == full or not exact:
        return None
    return start * step / parts, (start + count) * step / parts
