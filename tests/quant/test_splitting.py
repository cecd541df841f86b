"""splitting.py: the same function, finer steps for wide channels, and int8 weights that stay what they were."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_graphs import Builder, images, ranges_seen, run_exact

from pipeline.quant.assemble import Parts, assemble
from pipeline.quant.bias_correction import Dequantized
from pipeline.quant.int8_weights import round_to_nearest, scales_of
from pipeline.quant.layers import weights_of
from pipeline.quant.neighbours import PAIR_LIMIT, largest_sums
from pipeline.quant.qmath import Range
from pipeline.quant.rounding import Rounded
from pipeline.quant.splitting import Split, can_split, efficient, read_splits, split, ways_to_split

STEM = "t1"  # the stem's ReLU
CHANNELS = 32


def network(channels: int = CHANNELS) -> onnx.ModelProto:
    """Return a stem, its pool, and a block that adds to what the pool gives."""
    made = Builder()
    stem = made.op("Relu", made.conv("x", 3, channels))
    assert stem == STEM
    pooled = made.op("MaxPool", stem, kernel_shape=[2, 2], strides=[2, 2])
    inner = made.op("Relu", made.conv(pooled, channels, channels))
    joined = made.op("Relu", made.op("Add", made.conv(inner, channels, channels), pooled))
    return made.model(made.gemm(made.pooled(joined), channels, 5))


def parts_of(model: onnx.ModelProto, *, rounded: bool = False) -> Parts:
    made = {}
    for each in weights_of(model) if rounded else ():
        scales = scales_of(each.matrix, each.pairs, per_channel=True)
        steps = round_to_nearest(each.matrix, scales, each.pairs)
        steps -= (steps == 7).astype(np.int8)  # not what rounding to the nearest gives
        made[each.layer] = Rounded(steps, scales, 40.0, 40.0)
    return Parts(ranges=ranges_seen(model, images()), per_channel=True, rounded=made)


def in_the_middle(parts: Parts, channels: list[int]) -> dict[str, Split]:
    return {STEM: Split(channels, parts.ranges[STEM].high / 2, 0.25)}


@pytest.mark.parametrize("channels", [list(range(CHANNELS)), [5, 3, 0, 31]])
def test_split_keeps_the_answers_where_the_channels_left_whole_are_narrow(channels: list[int]) -> None:
    model = network()
    narrow = [each for each in range(CHANNELS) if each not in channels]
    for tensor in model.graph.initializer:
        if tensor.name == model.graph.node[0].input[1]:
            weights = numpy_helper.to_array(tensor).copy()
            weights[narrow] /= 4
            tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    before, parts = model.SerializeToString(), parts_of(model)
    changed, _ = split(model, parts, in_the_middle(parts, channels))
    onnx.checker.check_model(changed, full_check=True)
    assert model.SerializeToString() == before
    expected = run_exact(model, images())
    np.testing.assert_allclose(run_exact(changed, images()), expected, rtol=1e-4, atol=1e-4)


def test_split_leaves_a_quarter_of_the_noise() -> None:
    model = network()
    parts = parts_of(model)
    channels = list(reversed(range(CHANNELS)))
    changed, theirs = split(model, parts, in_the_middle(parts, channels))
    before = rounding_noise(assemble(model, parts).model, [])
    assert rounding_noise(assemble(changed, theirs).model, channels) == pytest.approx(before / 4, rel=0.1)


def test_an_addition_reads_the_sum_of_the_parts_and_the_other_convolution_in_float32() -> None:
    model = network()
    parts = parts_of(model)
    changed, theirs = split(model, parts, in_the_middle(parts, list(range(16))))
    made = assemble(changed, theirs).model
    makers = {name: node for node in made.graph.node for name in node.output}
    (addition,) = [node for node in made.graph.node if node.op_type == "Add"]
    assert [makers[name].op_type for name in addition.input] == ["Conv", "Conv"]
    for node in made.graph.node:
        if node.op_type == "Conv":  # int8
            assert makers[node.input[0]].op_type == makers[node.input[1]].op_type == "DequantizeLinear"


def rounding_noise(int8: onnx.ModelProto, again: list[int]) -> float:
    """Return the power of what the stem's quantizer changes, both parts of a channel together."""
    (quantizer,) = [each for each in int8.graph.node if each.op_type == "QuantizeLinear" and each.input[0] == STEM]
    (dequantized,) = [each.output[0] for each in int8.graph.node if quantizer.output[0] in each.input]
    del int8.graph.output[:]
    int8.graph.output.append(onnx.helper.make_tensor_value_info(STEM, onnx.TensorProto.FLOAT, None))
    given = run_exact(int8, images())[:, :CHANNELS]
    int8.graph.output[0].name = dequantized
    parts = run_exact(int8, images())
    found = parts[:, :CHANNELS].copy()
    found[:, again] += parts[:, CHANNELS:]
    return float(np.square(found - np.maximum(given, 0)).mean())


def test_split_keeps_rounded_weights_and_bounds_every_pair() -> None:
    model = network()
    parts = parts_of(model, rounded=True)
    channels = [20, 1, 7, 30, 2, 9]
    changed, theirs = split(model, parts, in_the_middle(parts, channels))
    made = assemble(changed, theirs)
    found = Dequantized(made.model)
    for each in weights_of(changed):
        constants = found.constants_of(each.layer)
        assert constants is not None
        scales = scales_of(each.matrix, each.pairs, per_channel=True)
        steps = np.rint(each.as_rows(constants[0]) / scales[:, None])
        assert largest_sums(steps, each.pairs).max() <= PAIR_LIMIT
        if each.layer in parts.rounded:
            before = parts.rounded[each.layer].weights
            kept = steps[: len(before)].reshape(len(before), -1, steps.shape[1] // constants[0].shape[1])
            inputs = before.shape[1] // kept.shape[2]
            np.testing.assert_array_equal(kept[:, :inputs].reshape(before.shape), before)


def test_split_leaves_the_noise_that_its_bound_says() -> None:
    model = network()
    parts = parts_of(model)
    channels, high = list(range(CHANNELS)), parts.ranges[STEM].high
    changed, theirs = split(model, parts, {STEM: Split(channels, 0.7 * high, 0.49)})
    np.testing.assert_allclose(run_exact(changed, images()), run_exact(model, images()), rtol=1e-4, atol=1e-4)
    before = rounding_noise(assemble(model, parts).model, [])
    assert rounding_noise(assemble(changed, theirs).model, channels) == pytest.approx(0.49 * before, rel=0.1)


def test_ways_to_split_take_few_channels_with_a_high_bound_up_to_all_wide_ones_at_half() -> None:
    model = network(64)
    largest = np.full(64, 0.1)
    largest[[4, 8, 15]] = 0.9
    (only,) = ways_to_split(model, STEM, largest, Range(0.0, 1.0))
    assert len(only.channels) == len(set(only.channels)) == 16 and {4, 8, 15} <= set(only.channels)
    assert only.bound == 0.5 and only.left == 0.25
    largest = np.linspace(0.3, 1.0, 64)[np.random.default_rng(0).permutation(64)]
    ways = ways_to_split(model, STEM, largest, Range(0.0, 1.0))
    assert [len(way.channels) for way in ways] == [16, 32, 48]
    ordered = np.sort(largest)[::-1]
    assert [way.bound for way in ways] == pytest.approx([ordered[16], ordered[32], 0.5])
    for way in ways:
        assert np.delete(largest, way.channels).max(initial=0.0) <= way.bound
        assert way.left == pytest.approx(way.bound**2)


def test_efficient_ways_leave_few_channels_out_where_more_save_more_noise_for_each() -> None:
    flat = np.linspace(0.9, 1.0, 64)  # with 16 parts the bound is .97, with 32 .95
    ways = ways_to_split(network(64), STEM, flat, Range(0.0, 1.0))
    assert [len(way.channels) for way in ways] == [16, 32, 48, 64]
    (only,) = efficient(ways)
    assert len(only.channels) == 64 and only.left == 0.25


def test_splits_of_earlier_versions_are_in_the_middle_of_the_range() -> None:
    held = {"a": [3, 1], "b": {"channels": [0, 2], "bound": 4.0, "left": 0.64}}
    found = read_splits(held, {"a": Range(0.0, 6.0), "b": Range(0.0, 5.0)})
    assert found == {"a": Split([3, 1], 3.0, 0.25), "b": Split([0, 2], 4.0, 0.64)}


def depthwise(made: Builder, x: str) -> str:
    return made.op("Conv", x, made.constant(made.normal(8, 1, 3, 3)), made.constant(made.normal(8)), group=8)


def joined(made: Builder, x: str) -> str:
    return made.conv(made.op("Concat", made.conv(x, 8, 8), x, axis=1), 16, 8)


def averaged(made: Builder, x: str) -> str:
    return made.conv(made.op("AveragePool", x, kernel_shape=[2, 2]), 8, 8)


def added(made: Builder, x: str) -> str:
    return made.op("Add", x, made.constant(1.0))


@pytest.mark.parametrize("reader", [depthwise, joined, averaged, added])
def test_activations_that_anything_else_reads_cannot_be_split(reader: Callable[[Builder, str], str]) -> None:
    made = Builder()
    x = made.op("Relu", made.conv("x", 3, 8))
    model = made.model(made.gemm(made.pooled(reader(made, x)), 8, 5))
    assert not can_split(model, x)


def test_activations_of_an_odd_number_of_channels_cannot_be_split() -> None:
    made = Builder()
    x = made.op("Relu", made.conv("x", 3, 7))
    assert not can_split(made.model(made.gemm(made.pooled(made.conv(x, 7, 8)), 8, 5)), x)
