"""slowdown.py: what changes of an int8 model compute and move beside it, counted by hand."""

from __future__ import annotations

import pytest
from small_graphs import SIDE, Builder

from pipeline.quant import slowdown
from pipeline.quant.float_sums import find_streams
from pipeline.quant.splitting import Split

STEM = "t1"  # the stem's ReLU
CHANNELS = 32


def test_splits_and_sums_take_what_they_compute_and_move() -> None:
    made = Builder()
    stem = made.op("Relu", made.conv("x", 3, CHANNELS))
    inner = made.op("Relu", made.conv(stem, CHANNELS, CHANNELS))
    joined = made.op("Relu", made.op("Add", made.conv(inner, CHANNELS, CHANNELS), stem))
    model = made.model(made.gemm(made.pooled(joined), CHANNELS, 5))
    assert stem == STEM
    positions, kernel = SIDE * SIDE, 3 * 3
    writer, reader = 3 * CHANNELS * kernel * positions, CHANNELS * CHANNELS * kernel * positions
    whole = writer + 2 * reader + 5 * CHANNELS
    # Half of the channels again, in the layer that writes them and in the one that reads them, and their sum.
    half = (writer + reader) / 2 + CHANNELS * 1.5 * CHANNELS * positions
    ways = Split(list(range(CHANNELS // 2)), 1.0, 0.5), Split(list(range(CHANNELS)), 1.0, 0.25)
    few, many = (slowdown.of_split(model, STEM, way) for way in ways)
    assert few == pytest.approx(half / whole)
    assert many == pytest.approx((writer + reader + CHANNELS * 2 * CHANNELS * positions) / whole)
    ((_, additions),) = find_streams(model).items()
    assert slowdown.of_sums(model, additions) == pytest.approx(120 * CHANNELS * positions / whole)
    assert slowdown.of_sums(model, []) > 0
    assert slowdown.of_float(model, STEM) == pytest.approx(3 * reader / whole)  # one convolution reads it


def test_float32_behind_a_pool_takes_the_layers_that_read_what_it_passes_on() -> None:
    made = Builder()
    stem = made.op("MaxPool", made.op("Relu", made.conv("x", 3, 8)), kernel_shape=[1, 1])
    model = made.model(made.gemm(made.pooled(made.conv(stem, 8, 8)), 8, 5))
    writer, reader = 3 * 8 * 9 * SIDE * SIDE, 8 * 8 * 9 * SIDE * SIDE
    assert slowdown.of_float(model, STEM) == pytest.approx(3 * reader / (writer + reader + 5 * 8))
