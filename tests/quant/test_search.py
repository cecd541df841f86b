"""search.py against quantizers that are run, value by value."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.errors import DataError
from pipeline.quant import qmath, search
from pipeline.quant.qmath import Range

Float32 = npt.NDArray[np.float32]


def seen(values: Float32) -> tuple[qmath.Counts, float, float]:
    return np.bincount(qmath.float_keys(values), minlength=qmath.BINS), float(values.min()), float(values.max())


def samples(name: str) -> Float32:
    rng = np.random.default_rng(3)
    drawn = {
        "normal": rng.normal(0, 1, 100_000),
        "relu": np.maximum(rng.normal(0, 1, 100_000), 0),
        "laplace": rng.laplace(0, 1, 100_000),
        "skewed": rng.normal(-2, 1, 100_000),
        "negative": -np.abs(rng.normal(0, 1, 100_000)),
        "uniform": rng.uniform(0, 1, 100_000),
    }
    return drawn[name].astype(np.float32)


NAMES = ("normal", "relu", "laplace", "skewed", "negative", "uniform")


def error_of(values: Float32, covered: Range) -> float:
    """Return the mean squared error of a uint8 quantizer that is run on every value."""
    scale = (covered.high - covered.low) / 255
    zero_point = round(-covered.low / scale)
    levels = np.clip(np.round(values.astype(np.float64) / scale) + zero_point, 0, 255)
    return float((((levels - zero_point) * scale - values) ** 2).mean())


@pytest.mark.parametrize("name", NAMES)
def test_mse_range_beats_every_range_of_a_grid(name: str) -> None:
    values = samples(name)
    counts, lowest, highest = seen(values)
    found = search.mse_range(counts, lowest, highest)
    assert found.low <= 0 <= found.high
    whole = qmath.max_range(lowest, highest)
    shares = np.linspace(0.3, 1.0, 15)
    grid = [Range(whole.low * low, whole.high * high) for low in shares for high in shares]
    assert error_of(values, found) <= 1.01 * min(error_of(values, covered) for covered in grid)


@pytest.mark.parametrize("name", NAMES)
def test_squared_error_is_that_of_a_quantizer_run_on_the_values(name: str) -> None:
    values = samples(name)
    counts, lowest, highest = seen(values)
    points, weights = search._values(counts)
    for share in (1.0, 0.7, 0.4):
        covered = Range(min(lowest, 0.0) * share, max(highest, 0.0) * share)
        found = search.squared_error(points, weights, covered) / values.size
        assert found == pytest.approx(error_of(values, covered), rel=0.02)


def test_mse_range_weighs_an_outlier_against_all_others() -> None:
    relu = np.maximum(np.random.default_rng(4).normal(0, 1, 100_000), 0).astype(np.float32)
    one = search.mse_range(*seen(np.append(relu, np.float32(40.0))))
    assert one.high < 38  # a single value at 40 is not worth steps ten times as wide for all
    many = search.mse_range(*seen(np.append(relu, np.full(1000, 40.0, np.float32))))
    assert many.high == 40


@pytest.mark.parametrize("name", NAMES)
def test_divergence_range_keeps_nearly_all_when_there_is_no_outlier(name: str) -> None:
    values = samples(name)
    found = search.divergence_range(*seen(values))
    inside = ((values >= found.low) & (values <= found.high)).mean()
    assert inside > 0.995
    assert found.low <= 0 <= found.high


@pytest.mark.parametrize("name", ["relu", "normal", "laplace", "skewed", "uniform"])
def test_divergence_range_cuts_a_lone_outlier(name: str) -> None:
    values = samples(name)
    alone = search.divergence_range(*seen(values))
    beside = search.divergence_range(*seen(np.append(values, np.float32(10 * np.abs(values).max()))))
    assert beside.high < 2 * max(alone.high, -alone.low)


def test_divergence_range_passes_over_zeros() -> None:
    values = samples("relu")
    more_zeros = np.concatenate([values, np.zeros(500_000, np.float32)])
    assert search.divergence_range(*seen(more_zeros)) == search.divergence_range(*seen(values))


def test_linear_histogram_keeps_every_value_near_its_place() -> None:
    values = samples("skewed")
    counts, lowest, highest = seen(values)
    whole = qmath.max_range(lowest, highest)
    fine = search.linear_histogram(counts, whole)
    assert fine.sum() == pytest.approx(values.size)
    wanted, _ = np.histogram(values, bins=64, range=(whole.low, whole.high))
    np.testing.assert_allclose(fine.reshape(64, -1).sum(1), wanted, atol=0.01 * values.size)


@pytest.mark.parametrize("search_range", [search.mse_range, search.divergence_range])
def test_search_gives_the_whole_range_of_zeros_and_raises_when_nothing_was_counted(
    search_range: object,
) -> None:
    assert callable(search_range)
    assert search_range(*seen(np.zeros(10_000, np.float32))) == Range(0.0, 0.0)
    with pytest.raises(DataError) as caught:
        search_range(np.zeros(qmath.BINS, np.int64), float("inf"), float("-inf"))
    assert str(caught.value) == "no value was counted, so no range can be chosen"


@pytest.mark.parametrize("name", NAMES)
def test_relative_noise_is_that_of_a_quantizer_run_on_the_values_with_clipping_four_times(name: str) -> None:
    values = samples(name)
    counts, lowest, highest = seen(values)
    candidates = [Range(share * min(lowest, 0), share * max(highest, 0)) for share in (1.0, 0.7, 0.4)]
    power = float((values.astype(np.float64) ** 2).mean())
    wanted = []
    for covered in candidates:
        clipped = float(((np.clip(values, covered.low, covered.high).astype(np.float64) - values) ** 2).mean())
        wanted.append((error_of(values, covered) + 3 * clipped) / power)
    assert search.relative_noise(counts, candidates) == pytest.approx(wanted, rel=0.03)


def test_relative_noise_is_zero_when_all_values_are() -> None:
    counts, _, _ = seen(np.zeros(10, np.float32))
    assert list(search.relative_noise(counts, [Range(0, 0), Range(0, 1)])) == [0, 0]
