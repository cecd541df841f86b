"""Ranges by search: the one with the least squared error, and the one with the least divergence, from histograms.

Both try ranges that are shares of the extremes seen, and return the best; `relative_noise` judges given ones.
Source of the histograms: `qmath.float_keys`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.quant import qmath
from pipeline.quant.qmath import Counts, Range

LEVELS = 256  # of a uint8 activation
# Shares of the extreme that are tried: in steps of 3%, down to 5%.
_SHARES = np.geomspace(1.0, 0.05, 100)
_POINTS = 4  # values to represent a bin: near the extreme, a quantizer's step is as narrow as a bin
_CLIPPED = 4.0  # times that an error of clipping counts, in `relative_noise`
_FINE_BINS = 2048  # of the linear histogram that the divergence is computed from, as in TensorRT
_LEAST_VALUES = 8 * LEVELS  # fewer do not show a distribution

Float64 = npt.NDArray[np.float64]


def mse_range(counts: Counts, lowest: float, highest: float) -> Range:
    """Return the range whose 256 levels give the least mean squared error, with both ends chosen separately.

    Args:
        counts: int64 [BINS], histogram of finite values by `qmath.float_keys`.
        lowest, highest: the extremes of those values.

    Raises:
        DataError: no value was counted.

    Source: the L2 criterion of Sung et al., "Resiliency of Deep Neural Networks under Quantization" (arXiv:1511.06488).
    """
    values, weights = _values(counts)
    best = whole = qmath.max_range(lowest, highest)
    for _ in range(2):  # the best low end depends on the high end and vice versa; two passes suffice near the optimum
        if whole.high > 0:
            best = _least(values, weights, [Range(best.low, float(whole.high * share)) for share in _SHARES])
        if whole.low < 0:
            best = _least(values, weights, [Range(float(whole.low * share), best.high) for share in _SHARES])
    return best


def _values(counts: Counts) -> tuple[Float64, Float64]:
    """Return values and how often each was seen: float64 [n], n = bins in use * _POINTS, spread over their bins."""
    used = np.flatnonzero(counts)
    if used.size == 0:
        raise DataError("no value was counted, so no range can be chosen")
    outer = qmath.key_bounds(used)
    inner = outer / (1 + 2.0 ** -(23 - qmath.KEY_SHIFT))
    parts = (np.arange(_POINTS) + 0.5) / _POINTS
    values = inner[:, None] + (outer - inner)[:, None] * parts
    values[np.abs(outer) < np.finfo(np.float32).tiny] = 0.0  # zero's own bin
    return values.reshape(-1), np.repeat(counts[used] / _POINTS, _POINTS)


def _least(values: Float64, weights: Float64, candidates: list[Range]) -> Range:
    return min(candidates, key=lambda covered: squared_error(values, weights, covered))


def relative_noise(counts: Counts, candidates: Sequence[Range]) -> Float64:
    """Return the noise of a uint8 quantizer of each range over the power of the values, float64 [candidates].

    Errors of values that a range cuts off count four times. Those of rounding average out over the products of a sum,
    and these do not: they have one sign, and fall on values that stand out. 0 where all values are 0.

    Args:
        counts: int64 [BINS], histogram of finite values by `qmath.float_keys`.

    Raises:
        DataError: no value was counted.
    """
    values, weights = _values(counts)
    power = float((weights * values**2).sum())
    if power == 0:
        return np.zeros(len(candidates))
    noise = [
        squared_error(values, weights, each) + (_CLIPPED - 1) * _clipped(values, weights, each) for each in candidates
    ]
    return np.array(noise) / power


def _clipped(values: Float64, weights: Float64, covered: Range) -> float:
    """Return the sum of squared errors of the values outside a range, in squared tensor units."""
    return float((weights * (np.clip(values, covered.low, covered.high) - values) ** 2).sum())


def squared_error(values: Float64, weights: Float64, covered: Range) -> float:
    """Return the sum of squared errors of a uint8 quantizer over weighted values, in squared tensor units."""
    scale = (covered.high - covered.low) / (LEVELS - 1)
    if scale == 0:
        return float((weights * values**2).sum())
    zero_point = np.round(-covered.low / scale)
    levels = np.clip(np.round(values / scale) + zero_point, 0, LEVELS - 1)
    return float((weights * ((levels - zero_point) * scale - values) ** 2).sum())


def divergence_range(counts: Counts, lowest: float, highest: float) -> Range:
    """Return the range whose 256 levels keep most of the distribution, by Kullback-Leibler divergence.

    Both ends are cut at the same magnitude. Args and errors as those of `mse_range`.

    Source: Migacz, "8-bit Inference with TensorRT" (GTC 2017).
    """
    whole = qmath.max_range(lowest, highest)
    if not counts.any():
        raise DataError("no value was counted, so no range can be chosen")
    counts = counts.copy()
    counts[list(qmath.ZERO_KEYS)] = 0  # exact in any range; a ReLU's zeros would outweigh everything else
    total = int(counts.sum())
    if total < _LEAST_VALUES or whole.high == whole.low:
        return whole
    fine = linear_histogram(counts, whole)
    edges = np.linspace(whole.low, whole.high, _FINE_BINS + 1)
    magnitudes = max(-whole.low, whole.high) * _SHARES
    candidates = [Range(max(whole.low, -float(bound)), min(whole.high, float(bound))) for bound in magnitudes]
    return min(candidates, key=lambda covered: _divergence(fine, edges, covered))


def linear_histogram(counts: Counts, whole: Range, bins: int = _FINE_BINS) -> Float64:
    """Return the counts in bins of equal width over the range: float64 [bins], each float bin spread evenly."""
    used = np.flatnonzero(counts)
    outer = qmath.key_bounds(used)
    order = np.argsort(outer)
    ends = np.concatenate([[whole.low], np.clip(outer[order], whole.low, whole.high), [whole.high]])
    # The bound of a negative bin is its low end, of a positive one its high end: count up to the end of the bin.
    seen = np.cumsum(counts[used][order])
    before = np.concatenate([[0], seen[:-1]])
    reached = np.where(outer[order] < 0, before, seen)
    cumulated = np.concatenate([[0], reached, [seen[-1]]]).astype(np.float64)
    return np.diff(np.interp(np.linspace(whole.low, whole.high, bins + 1), ends, cumulated))


def _divergence(fine: Float64, edges: Float64, covered: Range) -> float:
    """Return KL(P || Q): P the histogram with its outliers in the outermost bins, Q what 256 levels keep of it."""
    first = int(np.searchsorted(edges, covered.low, side="right")) - 1
    last = int(np.searchsorted(edges, covered.high, side="left"))
    kept = fine[first:last]
    clipped = kept.copy()
    clipped[0] += fine[:first].sum()
    clipped[-1] += fine[last:].sum()
    level = np.arange(kept.size) * LEVELS // kept.size
    occupied = clipped > 0
    in_level = np.bincount(level, kept * occupied, LEVELS)
    bins_of_level = np.bincount(level, occupied, LEVELS)
    spread = np.where(occupied, (in_level / np.maximum(bins_of_level, 1))[level], 0.0)
    p, q = clipped / clipped.sum(), spread / max(spread.sum(), 1.0)
    lost = occupied & (spread == 0)  # where Q is 0 and P is not, the divergence is infinite
    if lost.any():
        return float("inf")
    return float((p[occupied] * np.log(p[occupied] / q[occupied])).sum())
