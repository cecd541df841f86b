"""Quantization arithmetic as pure functions: no files, no state.

A histogram here counts float32 values by their leading 18 bits (sign, exponent, 9 bits of mantissa), so it needs no
range in advance, covers every float, and its bins are at most 2^-9 (0.2%) of their value wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError

KEY_SHIFT = 14  # mantissa bits dropped from a float32's 32 bits
BINS = 1 << (32 - KEY_SHIFT)
_SIGN = BINS // 2  # keys from here on are negative values, in order of growing magnitude
ZERO_KEYS = (0, _SIGN)  # of 0.0 and -0.0, and the numbers nearest to them
_INFINITE = np.uint32(0x7F800000) >> np.uint32(KEY_SHIFT)  # first key of Inf and NaN among the positive ones

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Range:
    """What a quantizer covers, in tensor units; `low` <= 0 <= `high`, so that zero is exact (padding, ReLU)."""

    low: float
    high: float


def float_keys(values: npt.NDArray[np.float32], out: Counts | None = None) -> Counts:
    """Return the histogram bin of each value: float32 [n], contiguous -> int64 [n] in [0, BINS), `out` if given."""
    keys = np.empty(values.shape, np.int64) if out is None else out
    np.right_shift(values.view(np.uint32), np.uint32(KEY_SHIFT), out=keys, casting="unsafe")
    return keys


def tail_keys(counts: Counts, share: float) -> tuple[int, int]:
    """Return for either sign the key of the magnitude beyond which the outermost `share` of all values lies.

    Args:
        counts: int64 [BINS], histogram of finite values by `float_keys`.
        share: in (0, 1), of all values, at either end.

    Returns:
        For the values below zero, and for those above; each at least 1, so that zeros are in neither.
    """
    outside = share * counts.sum()

    def first(of_sign: Counts) -> int:
        beyond = np.cumsum(of_sign[::-1])[::-1]
        return max(1, int((beyond > outside).sum()))

    return first(counts[_SIGN:]), first(counts[:_SIGN])


def magnitude(key: int) -> float:
    """Return the smallest magnitude with a given key of a value >= 0."""
    return float(np.array([key << KEY_SHIFT], np.uint32).view(np.float32)[0])


def key_bounds(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return for each bin of finite values its bound away from zero: int64 [n] -> float64 [n], tensor units."""
    magnitude = ((keys % _SIGN + 1) << KEY_SHIFT).astype(np.uint32).view(np.float32).astype(np.float64)
    return np.where(keys < _SIGN, magnitude, -magnitude)


def count_not_finite(counts: Counts) -> int:
    """Return how many of the counted values (int64 [BINS]) are NaN or Inf."""
    return int(counts[_INFINITE:_SIGN].sum() + counts[_SIGN + _INFINITE :].sum())


def percentile_range(counts: Counts, lowest: float, highest: float, percentile: float) -> Range:
    """Return the range that leaves at most (100 - percentile) % of the values outside at either end.

    Args:
        counts: int64 [BINS], histogram of finite values by `float_keys`.
        lowest, highest: the extremes of those values; the range never goes beyond them.
        percentile: in (50, 100], in %; 100 keeps every value.

    Returns:
        The range, widened to contain zero. Bounds are bin bounds or the extremes themselves.

    Raises:
        DataError: no value was counted.

    Source: percentile calibration as in Wu et al., "Integer Quantization for Deep Learning Inference"
    (arXiv:2004.09602), applied to either end of an asymmetric range.
    """
    total = int(counts.sum())
    if total == 0:
        raise DataError("no value was counted, so no range can be chosen")
    # Exact arithmetic: with 100 - 99.9999 in floats, rounding would decide the last clipped value.
    outside = int(total * (100 - Fraction(str(percentile))) / 100)
    high = _outer_bound(counts[:_SIGN], outside, 0)
    low = _outer_bound(counts[_SIGN:], outside, _SIGN)
    return Range(max(low, min(lowest, 0.0)), min(high, max(highest, 0.0)))


def _outer_bound(counts: Counts, outside: int, first_key: int) -> float:
    """Return the bound of the outermost bin that is kept when `outside` values may be clipped here; 0 if none is."""
    beyond = np.cumsum(counts[::-1])[::-1]  # values in bin i or further from zero
    kept = np.flatnonzero(beyond > outside)
    return float(key_bounds(kept[-1:] + first_key)[0]) if kept.size else 0.0


def max_range(lowest: float, highest: float) -> Range:
    """Return the range of all values seen, widened to contain zero."""
    return Range(min(lowest, 0.0), max(highest, 0.0))
