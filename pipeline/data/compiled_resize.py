"""Pillow's resize and crop of an image of four bytes per pixel, compiled by Numba: same bits in a third of the time.

Pillow resizes rows and columns one after the other, in whole numbers: a pixel is the sum of its neighbours, each with a
weight of 22 bits, rounded to 8 bits after either step. Source: `src/libImaging/Resample.c` of Pillow.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.config.vdsp import ResizeFilter

Pixels: TypeAlias = npt.NDArray[np.uint32]  # [H, W], four bytes each: red, green, blue, and one that is not used
Planes: TypeAlias = npt.NDArray[np.uint8]  # [3, H, W]
Indices: TypeAlias = npt.NDArray[np.int32]
Pair = tuple[int, int]

_BITS = 22  # of a weight behind the point
_HALF = 1 << (_BITS - 1)
# Rows that are turned at once, so that neighbours of one row follow each other: their bytes are a quarter of the
# second-level cache for a photo of 2000 pixels, and no multiple of its ways.
_STRIP = 100
_MOST_KNOWN = 1024  # axes


class Taps(NamedTuple):
    """What the pixels of one axis of the crop are made of."""

    span: slice  # of the image that they need
    first: Indices  # [pixels], of the neighbours, in this span
    weights: Indices  # [pixels, neighbours], of _BITS


def _bilinear(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.maximum(1.0 - np.abs(distance), 0.0)


def _bicubic(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    a, x = -0.5, np.abs(distance)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    weights: npt.NDArray[np.float64] = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
    return weights


# Each with its reach. Lanczos is left to Pillow: the last bit of its weights is that of the C library's sine.
_KERNELS: dict[ResizeFilter, tuple[Callable[..., npt.NDArray[np.float64]], float]] = {
    ResizeFilter.BILINEAR_PILLOW: (_bilinear, 1.0),
    ResizeFilter.BICUBIC_PILLOW: (_bicubic, 2.0),
}


def is_known(resize_filter: ResizeFilter) -> bool:
    """Tell whether a filter is computed here."""
    return resize_filter in _KERNELS


def prepare() -> None:
    """Compile what `resize_and_crop` needs, which takes two seconds, once.

    Raises:
        ImportError: Numba is not installed.
    """
    _compiled()


@lru_cache(_MOST_KNOWN)
def find_taps(length: int, full: int, start: int, count: int, resize_filter: ResizeFilter) -> Taps:
    """Return what pixels start .. start + count of an axis are made of that is resized from `length` to `full`."""
    kernel, reach = _KERNELS[resize_filter]
    scale = length / full
    widened = max(scale, 1.0)
    support = reach * widened
    centre = (np.arange(start, start + count) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), length)
    neighbours = first[:, None] + np.arange(int((last - first).max()))
    weights = kernel((neighbours - centre[:, None] + 0.5) * (1.0 / widened))
    weights[neighbours >= last[:, None]] = 0.0
    total = np.zeros(count)
    for column in weights.T:  # in Pillow's order: NumPy's sum rounds in another
        total += column
    weights /= total[:, None]
    rounded = np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights)).astype(np.int32)
    span = slice(int(first[0]), int(last[-1]))
    return Taps(span, (first - span.start).astype(np.int32), rounded)


def resize_and_crop(
    image: Pixels, resize_filter: ResizeFilter, full_hw: Pair, corner: Pair, crop_hw: Pair, *, rows_first: bool
) -> Planes:
    """Return what resizing to `full_hw` and then cropping gives, uint8 [3, *crop_hw].

    Args:
        image: C-contiguous.
        resize_filter: one that `is_known`.
        corner: top, left of the crop in the resized image.
        rows_first: whether rows are resized before columns. Pillow chooses by the sizes, and 12 otherwise than 13.
    """
    rows, columns, split = _compiled()
    (height, width), (tall, wide) = image.shape, crop_hw
    down = find_taps(height, full_hw[0], corner[0], tall, resize_filter)
    across = find_taps(width, full_hw[1], corner[1], wide, resize_filter)
    used = image[down.span, across.span]
    half = np.empty((used.shape[0], wide) if rows_first else (tall, used.shape[1]), np.uint32)
    whole = np.empty(crop_hw, np.uint32)
    if rows_first:
        rows(used, across.first, across.weights, half, *_scratch(used, wide))
        columns(half, down.first, down.weights, whole)
    else:
        columns(used, down.first, down.weights, half)
        rows(half, across.first, across.weights, whole, *_scratch(used, wide))
    planes = np.empty((3, *crop_hw), np.uint8)
    split(whole, planes)
    return planes


def _scratch(image: Pixels, wide: int) -> tuple[Pixels, Pixels]:
    return np.empty((image.shape[1], _STRIP), np.uint32), np.empty((wide, _STRIP), np.uint32)


@cache
def _compiled() -> tuple[Callable[..., None], ...]:
    """Return the three steps in machine code."""
    import numba

    def compiled(step: Callable[..., None], arguments: str) -> Callable[..., None]:
        signature = f"void({arguments})"
        made: Callable[..., None]
        try:
            made = numba.njit(signature, nogil=True, cache=True)(step)
        except RuntimeError:  # no folder of Numba's caches can be written to
            made = numba.njit(signature, nogil=True)(step)
        return made

    image, taps, pixels = "uint32[:, :]", "int32[::1], int32[:, ::1]", "uint32[:, ::1]"
    return (
        compiled(resize_rows, f"{image}, {taps}, {pixels}, {pixels}, {pixels}"),
        compiled(resize_columns, f"{image}, {taps}, {pixels}"),
        compiled(split_channels, f"{pixels}, uint8[:, :, ::1]"),
    )


# Plain loops over bytes that follow each other, which the compiler makes vector instructions of.


def resize_rows(image: Pixels, first: Indices, weights: Indices, out: Pixels, turned: Pixels, done: Pixels) -> None:
    """Resize [rows, columns] to `out`, [rows, pixels], by strips of rows that are turned on their side and back.

    Args:
        first, weights: of `Taps`.
        turned, done: memory to work in: [columns, strip], [pixels, strip].
    """
    height, wide = out.shape
    most, count = turned.shape[1], weights.shape[1]
    turned_bytes, done_bytes = turned.view(np.uint8), done.view(np.uint8)
    sums = np.empty(4 * most, np.int32)
    for top in range(0, height, most):
        strip = min(most, height - top)
        for y in range(strip):
            for x in range(image.shape[1]):
                turned[x, y] = image[top + y, x]
        total = sums[: 4 * strip]
        for x in range(wide):
            column, weight = turned_bytes[first[x]], weights[x, 0]
            for i in range(4 * strip):
                total[i] = _HALF + np.int32(column[i]) * weight
            for tap in range(1, count):
                weight = weights[x, tap]
                if weight != 0:  # else it may lie beyond the image
                    column = turned_bytes[first[x] + tap]
                    for i in range(4 * strip):
                        total[i] += np.int32(column[i]) * weight
            made = done_bytes[x]
            for i in range(4 * strip):
                made[i] = min(max(total[i], 0) >> _BITS, 255)
        for y in range(strip):
            for x in range(wide):
                out[top + y, x] = done[x, y]


def resize_columns(image: Pixels, first: Indices, weights: Indices, out: Pixels) -> None:
    """Resize [rows, columns] to `out`, [pixels, columns].

    Args:
        first, weights: of `Taps`.
    """
    tall, wide = out.shape
    out_bytes, total = out.view(np.uint8), np.empty(4 * wide, np.int32)
    for y in range(tall):
        line, weight = image[first[y]].view(np.uint8), weights[y, 0]
        for i in range(4 * wide):
            total[i] = _HALF + np.int32(line[i]) * weight
        for tap in range(1, weights.shape[1]):
            weight = weights[y, tap]
            if weight != 0:
                line = image[first[y] + tap].view(np.uint8)
                for i in range(4 * wide):
                    total[i] += np.int32(line[i]) * weight
        made = out_bytes[y]
        for i in range(4 * wide):
            made[i] = min(max(total[i], 0) >> _BITS, 255)


def split_channels(image: Pixels, planes: Planes) -> None:
    """Fill `planes`, [3, H, W], with the first three bytes of each pixel."""
    for y in range(image.shape[0]):
        line = image[y].view(np.uint8)
        for channel in range(3):
            plane = planes[channel, y]
            for x in range(image.shape[1]):
                plane[x] = line[4 * x + channel]
