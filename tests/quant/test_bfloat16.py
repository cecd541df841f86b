"""bfloat16.py beside float32 of the same values."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.quant import bfloat16, counting, qmath
from pipeline.quant.covariance import Covariance, GroupCovariance
from pipeline.quant.equalization import channel_extremes
from pipeline.quant.layers import Layer, LayerWeights
from pipeline.quant.observers import Observer

Float32 = npt.NDArray[np.float32]
Halves = npt.NDArray[np.uint16]


def halves(shape: tuple[int, ...], low: float = -9.0) -> Halves:
    """Return bfloat16 numbers of at least `low`, zeros of either sign among them."""
    values = np.maximum(np.random.default_rng(8).normal(0, 3, shape), low).astype(np.float32)
    if values.size > 2:
        values.reshape(-1)[:2] = 0.0, -0.0 if low < 0 else 0.0
    return np.asarray(values.view(np.uint32) >> 16, np.uint16)


def test_widen_gives_the_numbers_whose_upper_bits_they_are() -> None:
    bits = np.array([0x3F80, 0xC000, 0x0000, 0x7F80, 0x3F81], np.uint16)
    np.testing.assert_array_equal(bfloat16.widen(bits), np.array([1.0, -2.0, 0.0, np.inf, 1.0078125], np.float32))


def test_keys_are_those_of_the_same_values_in_float32() -> None:
    bits = halves((500,))
    np.testing.assert_array_equal(bfloat16.keys(bits), qmath.float_keys(bfloat16.widen(bits)))


@pytest.mark.parametrize("size", [1, 15, 16, 4000, 4003])
@pytest.mark.parametrize("low", [-9.0, 0.0])
def test_scan_finds_the_tails_and_the_extremes(size: int, low: float) -> None:
    bits = halves((size,), low)
    values = bfloat16.widen(bits)
    tails = (
        int(qmath.float_keys(np.array([4.1], np.float32))[0]),
        int(qmath.float_keys(np.array([5.2], np.float32))[0]),
    )
    below, above = -qmath.magnitude(tails[0]), qmath.magnitude(tails[1])
    outside, lowest, highest = bfloat16.scan(bits, tails)
    found = np.sort(bfloat16.widen(np.concatenate([*outside, np.zeros(0, np.uint16)])))
    np.testing.assert_array_equal(found, np.sort(values[(values <= below) | (values >= above)]))
    assert (lowest, highest) == (min(values.min(), 0.0), values.max())
    inside = bfloat16.widen(bfloat16.inside(bits, tails))
    np.testing.assert_array_equal(inside, values[(values > below) & (values < above)])


def test_scan_gives_the_largest_when_all_numbers_are_below_zero() -> None:
    bits = np.asarray(-np.arange(1, 40, dtype=np.float32)).view(np.uint32) >> 16
    _, lowest, highest = bfloat16.scan(bits.astype(np.uint16), bfloat16.NO_TAILS)
    assert (lowest, highest) == (-39.0, -1.0)


@pytest.mark.parametrize("low", [-9.0, 0.0])
def test_observer_counts_bfloat16_as_the_same_values_in_float32(low: float) -> None:
    """Whole, and sampled once the tails are known."""
    bits = halves((2, 40, 41, 8), low)
    one, other = Observer(samples=2048), Observer(samples=2048)
    for _ in range(2):
        one.add(bits)
        other.add(bfloat16.widen(bits))
        np.testing.assert_array_equal(one.counts, other.counts)
        assert (min(one.lowest, 0.0), one.highest) == (min(other.lowest, 0.0), other.highest)
        for observer in (one, other):
            observer.tails = qmath.tail_keys(observer.counts, 0.01)
            observer.counts[:] = 0


def test_observer_counts_what_waits_when_threads_add_at_once() -> None:
    """Before and after so many values wait that they are counted."""
    bits = halves((40_000,))
    once, at_once = Observer(samples=2048), Observer(samples=2048)
    for observer in (once, at_once):
        observer.add(bits)
        observer.tails = qmath.tail_keys(observer.counts, 0.01)
        observer.counts[:] = 0
    once.add(bits)
    for times in (3, 200):
        at_once.counts[:] = 0
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda _: at_once.add(bits), range(times)))
        np.testing.assert_array_equal(at_once.counts, times * once.counts)


@pytest.mark.parametrize("bad", [0x7F80, 0xFF80, 0x7FC0, 0xFFC0])
@pytest.mark.parametrize("sampled", [False, True])
def test_observer_counts_what_is_not_finite_in_bfloat16(bad: int, sampled: bool) -> None:
    bits = halves((50_000,))
    seen = Observer(samples=100)
    assert seen.add(bits)
    if sampled:
        seen.tails = qmath.tail_keys(seen.counts, 0.01)
    assert qmath.count_not_finite(seen.counts) == 0
    bits[33_333] = bad
    assert not seen.add(bits)
    assert qmath.count_not_finite(seen.counts) == 1


@pytest.mark.parametrize("low", [-9.0, 0.0])
def test_channel_extremes_are_those_of_float32(low: float) -> None:
    bits = halves((1, 9, 7, 5), low)
    expected = np.abs(bfloat16.widen(bits)).max(axis=(0, 1, 2))
    np.testing.assert_array_equal(channel_extremes(bits, 1), expected)
    np.testing.assert_array_equal(channel_extremes(bfloat16.widen(bits).transpose(0, 3, 1, 2), 1), expected)
    np.testing.assert_array_equal(channel_extremes(bits[0], -1), expected)  # tokens, whose channels are last anyway


@pytest.mark.parametrize(
    ("kernel", "strides", "dilations", "pads"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
        ((3, 2), (2, 1), (1, 2), (0, 1, 2, 0)),
        ((1, 1), (2, 2), (1, 1), (0, 0, 0, 0)),
    ],
)
def test_columns_of_bfloat16_are_those_of_the_same_values_in_float32(
    kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int], pads: tuple[int, int, int, int]
) -> None:
    bits = halves((1, 11, 9, 4))
    inputs = 4 * kernel[0] * kernel[1]
    matrix = np.zeros((2, inputs), np.float32)
    weights = LayerWeights("layer", "w", matrix, (2, 4, *kernel), False, np.zeros((0, 2), np.intp))
    layer = Layer(weights, "x", kernel, strides, dilations, pads)
    found = layer.columns(bits, 20, np.random.default_rng(1))
    in_float = bfloat16.widen(bits).transpose(0, 3, 1, 2)
    expected = layer.columns(in_float, 20, np.random.default_rng(1))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(bfloat16.widen(found), expected)


def test_covariances_of_bfloat16_are_those_of_the_same_values_in_float32() -> None:
    bits = halves((300, 12))
    for make in (lambda: Covariance(12), lambda: GroupCovariance(3, 4)):
        one, other = make(), make()
        for start in range(0, 300, 50):
            one.add(bits[start : start + 50])
            other.add(bfloat16.widen(bits[start : start + 50]))
        np.testing.assert_array_equal(one.means(), other.means())
        np.testing.assert_array_equal(one.result(), other.result())


@pytest.mark.parametrize("shape", [(1, 300, 301, 3), (1, 2, 2, 70_000), (1, 5, 40)])
def test_channel_means_are_those_of_float32(shape: tuple[int, ...]) -> None:
    """In one piece and in several."""
    bits = halves(shape)
    expected = bfloat16.widen(bits).astype(np.float64).reshape(-1, shape[-1]).mean(axis=0)
    np.testing.assert_allclose(counting._channel_means(bits, -1), expected, rtol=1e-4, atol=1e-4)
