"""levels.py: histograms of what an int8 model computes, beside those of the same values in float32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.quant import qmath
from pipeline.quant.levels import LevelCounts, Scale
from pipeline.quant.qmath import Range

Float32 = npt.NDArray[np.float32]


def counted(values: Float32) -> qmath.Counts:
    return np.bincount(qmath.float_keys(values), minlength=qmath.BINS).astype(np.int64)


def levels_of(values: Float32, scale: Scale) -> npt.NDArray[np.uint8]:
    levels: npt.NDArray[np.uint8] = np.clip(np.rint(values / np.float32(scale.step)) + scale.zero, 0, 255).astype(
        np.uint8
    )
    return levels


def draw(seed: int, count: int, *, relu: bool) -> Float32:
    values = np.random.default_rng(seed).laplace(0.2, 0.5, count).astype(np.float32)
    return np.maximum(values, 0) if relu else values


@pytest.mark.parametrize("relu", [True, False])
def test_spread_gives_the_percentiles_of_all_values(relu: bool) -> None:
    """A histogram of some values in float32 and of four times as many in levels, beside that of all in float32."""
    first, later = draw(0, 100_000, relu=relu), draw(1, 400_003, relu=relu)
    wanted = Range(1.25 * min(0.0, float(first.min())), 1.25 * float(first.max()))
    step = (wanted.high - wanted.low) / 255
    levels = LevelCounts.of(Scale(step, round(-wanted.low / step)), qmath.tail_keys(counted(first), 0.001), wanted)
    outside = levels.scan(levels_of(later, levels.scale))
    assert outside is not None
    assert sum(map(len, outside)) <= 0.0025 * later.size  # the tails alone
    levels.add(outside, later.size)
    found, exact = counted(first), counted(np.concatenate([first, later]))
    levels.spread(found)
    assert found.sum() == exact.sum()
    ends = float(min(first.min(), later.min())), float(max(first.max(), later.max()))
    for percentile in (99.0, 99.9, 99.99, 99.999):
        mine, its = (qmath.percentile_range(each, *ends, percentile) for each in (found, exact))
        assert mine.high == pytest.approx(its.high, rel=0.02, abs=step / 2)
        assert mine.low == pytest.approx(its.low, rel=0.02, abs=step / 2)
    least, most = levels.extremes()
    assert most == pytest.approx(float(later.max()), abs=step / 2 * 1.001)
    if not relu:
        assert least == pytest.approx(float(later.min()), abs=step / 2 * 1.001)


def test_scan_gives_nothing_when_values_may_lie_beyond_the_range() -> None:
    levels = LevelCounts.of(Scale(0.1, 100), (qmath.BINS // 4, qmath.BINS // 4), Range(-10.0, 15.5))
    middle = np.full(50, 120, np.uint8)
    assert levels.scan(middle) == []
    for beyond in (0, 255):
        for place in (3, 49):  # among whole columns, and in what is left
            values = middle.copy()
            values[place] = beyond
            assert levels.scan(values) is None


def test_scan_counts_the_last_level_when_a_clip_ends_there() -> None:
    """The quantizer of a ReLU6 covers 0 to 6, of whatever range was asked for; so does the level below zero of none."""
    levels = LevelCounts.of(Scale(6 / 255, 0), (1, int(qmath.float_keys(np.array([5.0], np.float32))[0])), Range(0, 7))
    assert (levels.open_low, levels.open_high) == (False, False)
    outside = levels.scan(np.array([0, 255, 255, 12], np.uint8))
    assert outside is not None
    levels.add(outside, 4)
    counts = counted(np.array([0.0, 0.25], np.float32))
    levels.spread(counts)
    assert counts.sum() == 6
    np.testing.assert_allclose(levels.extremes(), 6.0, rtol=1e-6)
    last = qmath.key_bounds(np.flatnonzero(counts)[-1:])
    assert last[0] == pytest.approx(6.0, rel=2**-8)


def test_arrays_hold_everything() -> None:
    levels = LevelCounts.of(Scale(0.25, 7), (900, 70_000), Range(-1.75, 62.0))
    levels.add([np.array([0, 255, 255], np.uint8)], 90)
    found = LevelCounts.from_arrays(*levels.as_arrays())
    assert repr(found) == repr(levels)
    np.testing.assert_array_equal(found.counts, levels.counts)


def test_spread_puts_values_at_zero_when_all_others_are_of_the_tails() -> None:
    levels = LevelCounts.of(Scale(1.0, 0), (1, 1), Range(0, 255.0))
    levels.add([], 10)
    counts = np.zeros(qmath.BINS, np.int64)
    levels.spread(counts)
    assert counts[0] == counts.sum() == 10
