"""qmath.py against slow, obvious references: sorted arrays, and loops over single values."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.errors import DataError
from pipeline.quant import qmath
from pipeline.quant.qmath import Range

Float32 = npt.NDArray[np.float32]
BIN_WIDTH = 2.0**-9  # relative, at most
ZERO_BIN = 2.3e-41  # what shares a bin with zero


def histogram(values: Float32) -> qmath.Counts:
    return np.bincount(qmath.float_keys(values), minlength=qmath.BINS)


def percentile_of(values: Float32, percentile: float) -> Range:
    return qmath.percentile_range(histogram(values), float(values.min()), float(values.max()), percentile)


def slow_percentile(values: Float32, percentile: float) -> tuple[float, float]:
    """Return the smallest and largest value that are kept when as many as allowed are cut from each end."""
    allowed = math.floor(len(values) * (100 - Fraction(str(percentile))) / 100)
    ordered = sorted(float(value) for value in values)
    return ordered[allowed], ordered[len(ordered) - 1 - allowed]


def samples(name: str) -> Float32:
    rng = np.random.default_rng(7)
    drawn = {
        "normal": rng.normal(0, 1, 20_000),
        "relu": np.maximum(rng.normal(0, 1, 20_000), 0),
        "long_tail": rng.standard_cauchy(20_000),
        "tiny": rng.normal(0, 1e-30, 5_000),
        "huge": rng.normal(0, 1e30, 5_000),
        "shifted": rng.normal(5, 1, 5_000),
        "few": rng.normal(0, 1, 7),
    }
    return drawn[name].astype(np.float32)


@pytest.mark.parametrize("percentile", [50.1, 90.0, 99.0, 99.9, 99.99, 99.9999, 100.0])
@pytest.mark.parametrize("name", ["normal", "relu", "long_tail", "tiny", "huge", "shifted", "few"])
def test_percentile_range_is_within_a_bin_of_the_sorted_values(name: str, percentile: float) -> None:
    values = samples(name)
    found = percentile_of(values, percentile)
    low, high = slow_percentile(values, percentile)
    # The bound away from zero of the bin that holds the outermost kept value: never less, at most a bin more.
    assert max(high, 0) <= found.high <= max(high, 0) * (1 + BIN_WIDTH) + ZERO_BIN
    assert min(low, 0) * (1 + BIN_WIDTH) - ZERO_BIN <= found.low <= min(low, 0)


@pytest.mark.parametrize("name", ["normal", "relu", "long_tail", "shifted", "few"])
def test_percentile_range_is_the_exact_extremes_when_every_value_is_kept(name: str) -> None:
    values = samples(name)
    extremes = Range(min(float(values.min()), 0.0), max(float(values.max()), 0.0))
    assert percentile_of(values, 100.0) == extremes
    assert qmath.max_range(float(values.min()), float(values.max())) == extremes


def test_percentile_range_grows_with_the_percentile() -> None:
    values = samples("long_tail")
    ranges = [percentile_of(values, percentile) for percentile in (60, 90, 99, 99.9, 99.99, 100)]
    assert [found.high for found in ranges] == sorted({found.high for found in ranges})
    assert [-found.low for found in ranges] == sorted({-found.low for found in ranges})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0] * 9, Range(0.0, 0.0)),
        ([-0.0] * 9, Range(0.0, 0.0)),
        ([3.14], Range(0.0, float(np.float32(3.14)))),
        ([-3.14], Range(float(np.float32(-3.14)), 0.0)),
        ([-1.0, -2.0, -4.0], Range(-4.0, 0.0)),
        ([1e-45], Range(0.0, 1.401298464324817e-45)),
        ([3.4028235e38, -3.4028235e38], Range(float(np.float32(-3.4028235e38)), float(np.float32(3.4028235e38)))),
    ],
    ids=["zeros", "negative zeros", "one value", "one negative", "negative only", "denormal", "largest floats"],
)
@pytest.mark.parametrize("percentile", [99.9, 100.0])
def test_percentile_range_contains_zero_at_the_edges(values: list[float], expected: Range, percentile: float) -> None:
    assert percentile_of(np.array(values, np.float32), percentile) == expected


@pytest.mark.parametrize(("percentile", "clipped"), [(99.9999, 1), (99.99991, 0), (99.99, 100), (99.7, 3000)])
def test_percentile_range_cuts_exactly_as_many_values_as_the_percentile_says(percentile: float, clipped: int) -> None:
    """Of a million values: 100 - 99.9999 in floats is 1.0000000000331966e-4, 100 - 99.7 is 0.29999999999999716."""
    counts = np.zeros(qmath.BINS, np.int64)
    powers = np.array([1.0, 2.0, 4.0], np.float32)
    counts[qmath.float_keys(powers)] = [1_000_000 - clipped - 1, 1, clipped]
    # One more value at 4 than may be cut, and it must be kept; just as many, and they must go.
    kept = qmath.percentile_range(counts, 1.0, 4.0, percentile).high
    assert 2.0 <= kept <= 2.0 * (1 + BIN_WIDTH)
    counts[qmath.float_keys(powers)] = [1_000_000 - clipped - 1, 0, clipped + 1]
    assert qmath.percentile_range(counts, 1.0, 4.0, percentile).high == 4.0


def test_percentile_range_cuts_each_end_on_its_own() -> None:
    values = np.concatenate([np.linspace(-1, 1, 997), [-50.0, 100.0, 90.0]]).astype(np.float32)
    found = percentile_of(values, 99.9)  # one value at either end
    assert found.low >= -1.0 * (1 + BIN_WIDTH)
    assert 90.0 <= found.high <= 90.0 * (1 + BIN_WIDTH)


def test_percentile_range_raises_when_nothing_was_counted() -> None:
    with pytest.raises(DataError) as caught:
        qmath.percentile_range(np.zeros(qmath.BINS, np.int64), math.inf, -math.inf, 99.9)
    assert str(caught.value) == "no value was counted, so no range can be chosen"


def test_key_bounds_are_the_next_float_beyond_each_bin() -> None:
    values = np.array([0.0, 1.0, 1.001, 1.9999, 255.5, 1e-40, -1.0, -3.7, -1e20], np.float32)
    keys = qmath.float_keys(values).astype(np.int64)
    for value, key, bound in zip(values, keys, qmath.key_bounds(keys), strict=True):
        inside = np.nextafter(np.float32(bound), np.float32(0))
        assert abs(value) < abs(bound)
        assert np.signbit(bound) == np.signbit(value)
        assert qmath.float_keys(np.array([inside], np.float32))[0] == key
        assert qmath.float_keys(np.array([bound], np.float32))[0] == key + 1


def test_count_not_finite_counts_nan_and_inf_of_either_sign() -> None:
    largest = np.finfo(np.float32).max
    values = np.array([np.nan, -np.nan, np.inf, -np.inf, largest, -largest, 0.0, -0.0, 1e-45], np.float32)
    quiet_and_signalling = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert qmath.count_not_finite(histogram(values)) == 4
    assert qmath.count_not_finite(histogram(quiet_and_signalling)) == 4
    assert qmath.count_not_finite(histogram(values[4:])) == 0
