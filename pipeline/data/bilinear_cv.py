"""OpenCV's bilinear resize, to the bit, without OpenCV."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def bilinear_cv(
    image_chw: Pixels, full_hw: tuple[int, int], corner: tuple[int, int], crop_hw: tuple[int, int]
) -> Pixels:
    """OpenCV's INTER_LINEAR to `full_hw`, of which only the crop is computed.

    Equal to the bit to OpenCV's own code (tried in 5.0); OpenCV builds that resize by a CPU vendor's library may differ
    by 1 of 255.

    Source: the uint8 path of OpenCV's resize.cpp: weights of 11 bits, rows weighted exactly, then columns with two
    truncating shifts (so it is on average 1/8 darker than exact rounding).
    """
    _, height, width = image_chw.shape
    above, below, weight_above, weight_below = _taps(height, full_hw[0], corner[0], crop_hw[0])
    before, after, weight_before, weight_after = _taps(width, full_hw[1], corner[1], crop_hw[1])

    def row_part(rows: NDArray[np.intp], weights: NDArray[np.int32]) -> NDArray[np.int32]:
        picked = image_chw[:, rows]
        mixed = picked.take(before, axis=2) * weight_before  # int32, at most 255 << 11
        mixed += picked.take(after, axis=2) * weight_after
        mixed >>= 4
        mixed *= weights[:, None]
        mixed >>= 16
        return mixed

    total = row_part(above, weight_above)
    total += row_part(below, weight_below)
    total += 2
    total >>= 2
    return total.astype(np.uint8)


def _taps(
    length: int, full: int, start: int, count: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32], NDArray[np.int32]]:
    """The two source pixels, and their weights of 11 bits, of outputs start .. start + count of an axis of `full`."""
    centre = ((np.arange(start, start + count) + 0.5) * (length / full) - 0.5).astype(np.float32)
    lower = np.floor(centre).astype(np.intp)
    fraction = centre - lower.astype(np.float32)
    # Beyond the outermost pixel centres both are that pixel; its two weights are truncated separately, as in OpenCV.
    first, second = lower.clip(0, length - 1), (lower + 1).clip(0, length - 1)
    return first, second, _bits11(np.float32(1.0) - fraction), _bits11(fraction)


def _bits11(weight: NDArray[np.float32]) -> NDArray[np.int32]:
    scaled: NDArray[np.float32] = np.rint(weight * np.float32(2048.0))
    return scaled.astype(np.int32)
