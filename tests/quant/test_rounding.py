"""rounding.py against references that know nothing of blocks, factors or windows."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from damaged import cut_or_flipped
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import ArtefactError
from pipeline.onnx_models import classifier
from pipeline.quant import placement, qdq, rounding
from pipeline.quant.covariance import Covariance, GroupCovariance
from pipeline.quant.int8_weights import install_weights, scales_of
from pipeline.quant.layers import Layer, LayerWeights, layers_of
from pipeline.quant.neighbours import weight_pairs
from pipeline.quant.qmath import Range
from pipeline.quant.rounding import (
    Rounded,
    factor_in_place,
    mean_error,
    read_rounded,
    round_blocks,
    round_groups,
    round_weights,
    write_rounded,
)

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int8 = npt.NDArray[np.int8]
EVERYWHERE = 1 << 30  # positions: more than there are

NO_PAIRS = np.empty((0, 2), np.intp)
DAMPING = 0.01  # of the mean variance, as rounding.py says


def correlated(count: int, inputs: int, seed: int, *, noise: float = 0.2) -> Float32:
    """Return float32 [count, inputs], random walks: like the pixels of a picture, each resembles those beside it."""
    rng = np.random.default_rng(seed)
    walks = rng.normal(0, 1, (count, inputs)).cumsum(axis=1) / inputs**0.5
    return np.asarray(walks + noise * rng.normal(0, 1, (count, inputs)), np.float32)


def covariance_of(columns: Float32) -> Float32:
    covariance = Covariance(columns.shape[1])
    covariance.add(columns)
    return covariance.result()


def nearest(weights: Float32, scales: Float32) -> Int8:
    steps: Float32 = np.clip(np.rint(weights / scales[:, None]), -127, 127)
    return steps.astype(np.int8)


def in_turn(weights: Float32, scales: Float32, covariance: Float32, pairs: Sequence[tuple[int, int]] = ()) -> Int8:
    """Round input by input, those of the largest variance first, to where all that are still free would be best off.

    Straight from the error e C e^T: with the errors of the rounded inputs fixed, solve for the others'. Of a pair, the
    second takes no more than what the first leaves of 128 steps of its sign.
    """
    ordered = covariance.astype(np.float64)
    ordered = ordered + DAMPING * np.diag(covariance).mean(dtype=np.float64) * np.eye(len(ordered))
    steps = (weights / scales[:, None]).astype(np.float64)
    errors = np.zeros_like(steps)
    free = list(np.argsort(np.diag(covariance), kind="stable"))
    fixed: list[int] = []
    rounded = np.zeros(weights.shape, np.int8)
    while free:
        wanted: Float64 = np.zeros((len(free), len(steps)))
        if fixed:
            wanted = -np.linalg.solve(ordered[np.ix_(free, free)], ordered[np.ix_(free, fixed)] @ errors[:, fixed].T)
        column = free.pop()
        for row, step in enumerate(np.clip(np.rint(steps[:, column] - wanted[-1]), -127, 127)):
            for pair in pairs:
                other = pair[1 - pair.index(column)] if column in pair else None
                if other in fixed and rounded[row, other] * step > 0:
                    step = np.sign(step) * min(abs(step), 128 - abs(int(rounded[row, other])))
            rounded[row, column] = step
        errors[:, column] = steps[:, column] - rounded[:, column]
        fixed.append(column)
    return rounded


def output_error(weights: Float32, scales: Float32, rounded: Int8, columns: Float32) -> float:
    """Return the variance of what rounding adds to the outputs, summed over them."""
    error = columns.astype(np.float64) @ (weights - rounded * scales[:, None]).astype(np.float64).T
    return float(error.var(axis=0).sum())


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    "inputs", [3, 129, *(pytest.param(inputs, marks=pytest.mark.slow) for inputs in (127, 128, 200, 300))]
)
def test_round_weights_gives_what_rounding_in_turn_gives(inputs: int, per_channel: bool) -> None:
    """On both sides of a block of 128 columns, and over two of them."""
    columns = correlated(4 * inputs, inputs, seed=inputs)
    columns *= np.random.default_rng(1).permutation(np.linspace(0.5, 2, inputs)).astype(np.float32)
    covariance = covariance_of(columns)
    weights = np.random.default_rng(2).normal(0, 1, (5, inputs)).astype(np.float32)
    scales = scales_of(weights, NO_PAIRS, per_channel=per_channel)
    found = round_weights(weights, scales, covariance.copy(), NO_PAIRS)
    assert found.weights.dtype == np.int8
    np.testing.assert_array_equal(found.weights, in_turn(weights, scales, covariance))
    assert (found.weights != nearest(weights, scales)).any()


@pytest.mark.parametrize(("groups", "inputs"), [(1, 9), (6, 9), (3, 20)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_round_groups_rounds_each_group_by_its_own_inputs(groups: int, inputs: int, per_channel: bool) -> None:
    columns = np.concatenate([correlated(60, inputs, seed=group) for group in range(groups)], axis=1)
    covariances = GroupCovariance(groups, inputs)
    for part in np.split(columns, 6):
        covariances.add(part)
    expected = [np.cov(part, rowvar=False, bias=True) for part in np.split(columns, groups, axis=1)]
    np.testing.assert_allclose(covariances.result(), expected, atol=1e-5)
    np.testing.assert_allclose(covariances.means().reshape(-1), columns.mean(axis=0), atol=1e-6)
    weights = np.random.default_rng(2).normal(0, 1, (2 * groups, inputs)).astype(np.float32)
    scales = scales_of(weights, NO_PAIRS, per_channel=per_channel)
    found = round_groups(weights, scales, covariances.result(), NO_PAIRS)
    of_rows = np.broadcast_to(scales, len(weights))
    wanted = [
        in_turn(weights[[2 * g, 2 * g + 1]], of_rows[[2 * g, 2 * g + 1]], covariances.result()[g])
        for g in range(groups)
    ]
    np.testing.assert_array_equal(found.weights, np.concatenate(wanted))
    assert found.sqnr_db > found.nearest_sqnr_db
    lost = weights - found.weights * of_rows[:, None]
    means = columns.mean(axis=0).reshape(groups, inputs)
    np.testing.assert_allclose(
        mean_error(weights, found.weights, scales, means),
        [lost[row] @ means[row // 2] for row in range(len(weights))],
        atol=1e-6,
    )


@pytest.mark.parametrize("shape", [(5, 40), (5, 5, 3, 3)])
def test_round_blocks_rounds_each_block_of_inputs_and_bounds_pairs_across_them(shape: tuple[int, ...]) -> None:
    """For an odd number of channels some pairs lie across the border of two blocks."""
    inputs, width = int(np.prod(shape[1:])), 18
    covariance = covariance_of(correlated(4 * inputs, inputs, seed=31))
    weights = np.random.default_rng(32).uniform(0.3, 1, (5, inputs)).astype(np.float32)
    scales, pairs = scales_of(weights, NO_PAIRS, per_channel=True), weight_pairs(shape)
    found = round_blocks(weights, scales, lambda block: covariance[block, block], pairs, width)
    sums = found.weights[:, pairs].astype(int).sum(axis=2)
    assert sums.max() <= 128
    free = round_blocks(weights, scales, lambda block: covariance[block, block], NO_PAIRS, width)
    for start in range(0, inputs, width):
        block = slice(start, start + width)
        wanted = in_turn(weights[:, block], scales, covariance[block, block])
        np.testing.assert_array_equal(free.weights[:, block], wanted)
    assert free.sqnr_db > free.nearest_sqnr_db


@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (5, 3, 3, 3), (5, 130), (5, 1, 5, 2)])
def test_round_weights_keeps_every_pair_within_the_bound_when_rounding_in_turn(shape: tuple[int, ...]) -> None:
    """Scales of single weights, so that the bound acts on many pairs; for odd channels a weight is in two of them."""
    inputs = int(np.prod(shape[1:]))
    covariance = covariance_of(correlated(4 * inputs, inputs, seed=21))
    drawn = np.random.default_rng(22).choice([-1, 1], (5, inputs)) * np.random.default_rng(23).uniform(0.3, 1, inputs)
    weights = drawn.astype(np.float32)
    scales = scales_of(weights, NO_PAIRS, per_channel=True)
    pairs = weight_pairs(shape)
    found = round_weights(weights, scales, covariance.copy(), pairs).weights
    wanted = in_turn(weights, scales, covariance, [tuple(pair) for pair in pairs.tolist()])
    np.testing.assert_array_equal(found, wanted)
    sums = found[:, pairs].astype(int)
    assert np.where(sums > 0, sums, 0).sum(axis=2).max() == 128
    assert np.where(sums < 0, sums, 0).sum(axis=2).min() == -128
    free = round_weights(weights, scales, covariance.copy(), NO_PAIRS).weights[:, pairs].astype(int)
    assert np.where(free > 0, free, 0).sum(axis=2).max() > 128


@pytest.mark.parametrize("inputs", [16, 147, 400])
def test_round_weights_beats_nearest_rounding_when_inputs_are_correlated(inputs: int) -> None:
    columns = correlated(8 * inputs, inputs, seed=3)
    weights = np.random.default_rng(4).normal(0, 0.1, (8, inputs)).astype(np.float32)
    scales = scales_of(weights, NO_PAIRS, per_channel=True)
    found = round_weights(weights, scales, covariance_of(columns), NO_PAIRS)
    ours = output_error(weights, scales, found.weights, columns)
    theirs = output_error(weights, scales, nearest(weights, scales), columns)
    assert ours < 0.5 * theirs
    assert found.sqnr_db > found.nearest_sqnr_db + 3


def test_round_weights_says_what_rounding_costs() -> None:
    """The decibels are those of outputs measured on the inputs, where damping adds next to nothing to them."""
    columns = correlated(3000, 12, seed=5, noise=1.0)
    weights = np.random.default_rng(6).normal(0, 1, (6, 12)).astype(np.float32)
    scales = scales_of(weights, NO_PAIRS, per_channel=True)
    found = round_weights(weights, scales, covariance_of(columns), NO_PAIRS)
    signal = output_error(weights, scales, np.zeros(weights.shape, np.int8), columns)
    for decibels, rounded in (
        (found.sqnr_db, found.weights),
        (found.nearest_sqnr_db, nearest(weights, scales)),
    ):
        measured = 10 * np.log10(signal / output_error(weights, scales, rounded, columns))
        assert decibels == pytest.approx(measured, abs=0.3)


def test_round_weights_rounds_to_the_nearest_when_inputs_are_independent() -> None:
    weights = np.random.default_rng(7).normal(0, 1, (6, 150)).astype(np.float32)
    scales = scales_of(weights, NO_PAIRS, per_channel=True)
    found = round_weights(weights, scales, np.eye(150, dtype=np.float32), NO_PAIRS)
    np.testing.assert_array_equal(found.weights, nearest(weights, scales))
    assert found.sqnr_db == pytest.approx(found.nearest_sqnr_db, abs=1e-3)


def test_round_weights_rounds_to_the_nearest_when_inputs_never_vary() -> None:
    weights = np.random.default_rng(8).normal(0, 1, (6, 150)).astype(np.float32)
    scales = scales_of(weights, NO_PAIRS, per_channel=True)
    found = round_weights(weights, scales, np.zeros((150, 150), np.float32), NO_PAIRS)
    np.testing.assert_array_equal(found.weights, nearest(weights, scales))


def test_round_weights_saturates_when_making_up_would_leave_the_range() -> None:
    """The second input loses 0.4 steps and counts ten times as much: the first should become 131."""
    covariance = np.array([[1, 9.99], [9.99, 100]], np.float32)
    weights = np.array([[127, 126.4], [-127, -126.4]], np.float32)
    found = round_weights(weights, np.ones(2, np.float32), covariance, NO_PAIRS)
    assert found.weights.tolist() == [[127, 126], [-127, -126]]
    np.testing.assert_array_equal(
        found.weights, in_turn(weights, np.ones(2, np.float32), np.array([[1, 9.99], [9.99, 100]], np.float32))
    )


def test_round_weights_stays_in_range_when_one_scale_is_too_small_for_a_channel() -> None:
    columns = correlated(500, 40, seed=9, noise=0.01)
    weights = np.random.default_rng(10).normal(0, 1, (8, 40)).astype(np.float32)
    scales = scales_of(weights, NO_PAIRS, per_channel=True) / np.float32(2)  # a third of the weights beyond 127 steps
    covariance = covariance_of(columns)
    found = round_weights(weights, scales, covariance.copy(), NO_PAIRS).weights
    assert (found.min(), found.max()) == (-127, 127)
    np.testing.assert_array_equal(found, in_turn(weights, scales, covariance))


@pytest.mark.parametrize(
    ("mean", "deviation", "count", "inputs"),
    [(10.0, 0.01, 64, 32), (1.0, 1e-4, 64, 32), (10.0, 0.05, 128, 200), (0.1, 0.0, 3, 5), (3.3, 0.0, 7, 40)],
)
def test_round_weights_rounds_when_inputs_hardly_vary_about_a_mean(
    mean: float, deviation: float, count: int, inputs: int
) -> None:
    """The covariance must not drown in what float32 loses of the squared mean, or it has no factor."""
    rng = np.random.default_rng(11)
    columns = (mean + deviation * rng.normal(0, 1, (count, inputs))).astype(np.float32)
    weights = rng.normal(0, 1, (4, inputs)).astype(np.float32)
    scales = scales_of(weights, NO_PAIRS, per_channel=True)
    found = round_weights(weights, scales, covariance_of(columns), NO_PAIRS).weights
    far = np.abs(found - weights / scales[:, None])
    assert far.max() < 20
    ours = output_error(weights, scales, found, columns)
    assert ours <= 1.01 * output_error(weights, scales, nearest(weights, scales), columns) + 1e-9


# -- covariance


def layer_of(matrix: Float32, kernel: tuple[int, int] | None) -> Layer:
    return Layer(LayerWeights("layer", "w", matrix, matrix.shape, False, NO_PAIRS), "x", kernel)


@pytest.mark.parametrize("sizes", [[64], [5, 1, 40, 3, 64], [1] * 30])
def test_covariance_is_numpys_when_columns_come_in_parts(sizes: Sequence[int]) -> None:
    columns = correlated(sum(sizes), 24, seed=12) + np.linspace(-2, 2, 24, dtype=np.float32)
    covariance = Covariance(24)
    for part in np.split(columns, np.cumsum(sizes)[:-1]):
        covariance.add(part)
    expected = np.cov(columns.astype(np.float64), rowvar=False, bias=True)
    found = covariance.result()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_covariance_is_numpys_when_means_are_large() -> None:
    columns = (10 + 0.02 * correlated(256, 16, seed=13, noise=1.0)).astype(np.float32)
    expected = np.cov(columns.astype(np.float64), rowvar=False, bias=True)
    covariance = Covariance(16)
    for part in np.split(columns, 8):
        covariance.add(part)
    np.testing.assert_allclose(covariance.result(), expected, rtol=0, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["conv", "point", "gemm"])
def test_covariance_keeps_what_it_was_given_when_the_readers_buffer_changes(name: str) -> None:
    """`ActivationReader` fills the same buffers again; what was added before must stay."""
    layers = {
        "conv": layer_of(np.zeros((2, 36), np.float32), (3, 3)),
        "point": layer_of(np.zeros((2, 4), np.float32), (1, 1)),
        "gemm": layer_of(np.zeros((2, 4), np.float32), None),
    }
    layer, rng = layers[name], np.random.default_rng(14)
    buffer = np.empty((1, 4) if name == "gemm" else (1, 4, 3, 3), np.float32)
    covariance = Covariance(layer.inputs)
    seen = []
    for _ in range(3):  # fewer columns than inputs: nothing is summed before `result`
        buffer[...] = rng.normal(0, 1, buffer.shape)
        columns = layer.columns(buffer, 1, rng)
        covariance.add(columns)
        seen.append(columns.copy())
    buffer[...] = np.nan
    expected = np.cov(np.concatenate(seen), rowvar=False, bias=True)
    np.testing.assert_allclose(covariance.result(), expected, atol=1e-5)


# -- layers and their columns


def model_of(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, np.ndarray], output: str, size: int = 9
) -> onnx.ModelProto:
    """Return a model, float32 `input` [N, 3, size, size] -> `output`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * (2 if nodes[-1].op_type == "Gemm" else 4))],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def normal(*shape: int, seed: int = 15) -> Float32:
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((3, 3), {}),
        ((1, 1), {}),
        ((1, 1), {"strides": [2, 2]}),
        ((3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ((3, 3), {"pads": [0, 2, 1, 3], "strides": [1, 3]}),
        ((3, 2), {"dilations": [2, 3], "pads": [2, 0, 1, 4]}),
        ((2, 5), {"dilations": [3, 1], "strides": [3, 2], "pads": [1, 2, 0, 1]}),
        ((7, 7), {"pads": [3, 3, 3, 3], "strides": [2, 2]}),
    ],
)
def test_columns_times_weights_is_the_convolution(kernel: tuple[int, int], attributes: dict[str, Any]) -> None:
    weights = normal(4, 3, *kernel)
    model = model_of([helper.make_node("Conv", ["input", "w"], ["y"], "conv", **attributes)], {"w": weights}, "y", 11)
    (layer,) = layers_of(model)
    assert (layer.name, layer.source, layer.inputs) == ("conv", "input", 3 * kernel[0] * kernel[1])
    image = normal(1, 3, 11, 11, seed=16)
    expected = classifier.run(model, image)[0]
    columns = layer.columns(image, EVERYWHERE, np.random.default_rng(0))
    np.testing.assert_allclose((columns @ layer.weights.matrix.T).T.reshape(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_columns_of_groups_times_their_weights_are_the_convolution(groups: int) -> None:
    weights = normal(8, 4 // groups, 3, 3)
    nodes = [
        helper.make_node("Conv", ["input", "w0"], ["a"], "widen"),
        helper.make_node("Conv", ["a", "w"], ["y"], "conv", group=groups, pads=[1, 1, 1, 1], strides=[2, 2]),
    ]
    model = model_of(nodes, {"w0": normal(4, 3, 1, 1), "w": weights}, "y", 11)
    layer = list(layers_of(model))[1]
    values = torch.from_numpy(normal(1, 4, 11, 11, seed=19))
    expected = torch.nn.functional.conv2d(values, torch.from_numpy(weights), None, 2, 1, 1, groups)[0].numpy()
    columns = layer.columns(values.numpy(), EVERYWHERE, np.random.default_rng(0))
    by_group = columns.reshape(len(columns), groups, layer.inputs)
    rows = layer.weights.matrix.reshape(groups, -1, layer.inputs)
    found = np.einsum("ngi,goi->gon", by_group, rows).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_columns_of_a_matmul_are_its_tokens() -> None:
    nodes = [
        helper.make_node("Reshape", ["input", "shape"], ["tokens"], "reshape"),
        helper.make_node("MatMul", ["tokens", "w"], ["y"], "matmul"),
    ]
    constants: dict[str, np.ndarray] = {"shape": np.array([0, 27, 9], np.int64), "w": normal(9, 5)}
    (layer,) = layers_of(model_of(nodes, constants, "y"))
    values = normal(1, 27, 9, seed=20)
    columns = layer.columns(values, EVERYWHERE, np.random.default_rng(0))
    np.testing.assert_allclose(columns @ layer.weights.matrix.T, (values @ constants["w"])[0], atol=1e-5)
    assert layer.columns(values, 8, np.random.default_rng(0)).shape == (8, 9)


def test_columns_are_torchs_unfolded_ones() -> None:
    weights = normal(4, 3, 3, 2)
    attributes: dict[str, Any] = {"strides": [2, 1], "pads": [1, 2, 1, 2], "dilations": [2, 1]}
    (layer,) = layers_of(
        model_of([helper.make_node("Conv", ["input", "w"], ["y"], "c", **attributes)], {"w": weights}, "y")
    )
    image = normal(1, 3, 9, 9, seed=17)
    unfolded = torch.nn.functional.unfold(
        torch.from_numpy(image), (3, 2), dilation=(2, 1), padding=(1, 2), stride=(2, 1)
    )
    np.testing.assert_array_equal(layer.columns(image, EVERYWHERE, np.random.default_rng(0)), unfolded[0].numpy().T)


def test_columns_are_some_of_all_each_once_when_there_are_too_many() -> None:
    layer = layer_of(normal(2, 27), (3, 3))
    image = normal(1, 3, 12, 12, seed=18)
    everything = {column.tobytes() for column in layer.columns(image, EVERYWHERE, np.random.default_rng(0))}
    assert len(everything) == 100
    drawn = [layer.columns(image, 60, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert [len({column.tobytes() for column in each} & everything) for each in drawn] == [60, 60, 60]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    assert len(layer.columns(image, 100, np.random.default_rng(0))) == 100


def test_layers_of_leaves_out_what_cannot_be_rounded() -> None:
    nodes = [
        helper.make_node("Conv", ["input", "w0"], ["a"], "plain", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "grouped"], ["b"], "grouped", group=2, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "shared"], ["c"], "shared_1"),
        helper.make_node("Conv", ["c", "shared"], ["d"], "shared_2"),
        helper.make_node("Conv", ["d", "w1"], ["e"], "auto", auto_pad="SAME_UPPER"),
        helper.make_node("GlobalAveragePool", ["e"], ["f"], "pool"),
        helper.make_node("Flatten", ["f"], ["g"], "flatten"),
        helper.make_node("Gemm", ["g", "w2"], ["h"], "fc", transB=1),
        helper.make_node("Gemm", ["h", "w3"], ["i"], "other_layout"),
        helper.make_node("Gemm", ["i", "w4"], ["j"], "scaled", alpha=0.5),
        helper.make_node("Gemm", ["j", "h"], ["k"], "of_activations", transA=1),
    ]
    constants = {
        "w0": normal(4, 3, 3, 3),
        "grouped": normal(4, 2, 3, 3),
        "shared": normal(4, 4, 1, 1),
        "w1": normal(4, 4, 3, 3),
        "w2": normal(5, 4),
        "w3": normal(5, 6),
        "w4": normal(6, 6),
    }
    found = list(layers_of(model_of(nodes, constants, "k")))
    assert [layer.name for layer in found] == ["plain", "grouped", "fc", "other_layout"]
    assert [layer.source for layer in found] == ["input", "a", "g", "h"]
    assert [layer.groups for layer in found] == [1, 2, 1, 1]
    np.testing.assert_array_equal(found[2].weights.matrix, constants["w2"])
    np.testing.assert_array_equal(found[3].weights.matrix, constants["w3"].T)


# -- scales and the int8 model


@pytest.fixture(scope="module")
def mixed() -> onnx.ModelProto:
    """Convolutions, one with a dead channel, and Gemms of both layouts."""
    constants = {
        "w0": normal(6, 3, 3, 3, seed=1),
        "b0": normal(6, seed=2),
        "w1": normal(4, 6, 2, 3, seed=3),
        "w2": normal(5, 4, seed=4),
        "b2": normal(5, seed=5),
        "w3": normal(5, 7, seed=6),
        "b3": normal(7, seed=7),
    }
    constants["w0"] *= np.array([1, 3, 0, 0.01, 0.5, 1e-3], np.float32)[:, None, None, None]
    nodes = [
        helper.make_node("Conv", ["input", "w0", "b0"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w1"], ["c"], "second", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], "pool"),
        helper.make_node("Flatten", ["d"], ["e"], "flatten"),
        helper.make_node("Gemm", ["e", "w2", "b2"], ["f"], "hidden", transB=1),
        helper.make_node("Relu", ["f"], ["g"], "relu_2"),
        helper.make_node("Gemm", ["g", "w3", "b3"], ["h"], "last"),
    ]
    return model_of(nodes, constants, "h")


LAYERS = ("first", "second", "hidden", "last")


def install(
    int8: onnx.ModelProto, float32: onnx.ModelProto, rounded: Mapping[str, Rounded]
) -> dict[str, npt.NDArray[np.bool_]]:
    return install_weights(int8, float32, {name: (each.weights, each.scales) for name, each in rounded.items()})


def insert_qdq(model: onnx.ModelProto, *, per_channel: bool, float_layers: Sequence[str] = ()) -> onnx.ModelProto:
    ranges = {name: Range(-3, 3) for name in placement.observed_tensors(model)}
    return qdq.insert_qdq(model, ranges, per_channel=per_channel, float_layers=float_layers)


def dequantized(int8: onnx.ModelProto, name: str) -> tuple[Int8, Float32, Float64]:
    """Return a layer's int8 weights, their scales, and the product as ONNX defines DequantizeLinear."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    makers = {made: node for node in int8.graph.node for made in node.output}
    maker = makers[next(node.input[1] for node in int8.graph.node if node.name == name)]
    assert maker.op_type == "DequantizeLinear"
    axis = next((each.i for each in maker.attribute if each.name == "axis"), 1)
    stored, scales = values[maker.input[0]], values[maker.input[1]]
    shape = [-1 if place == axis else 1 for place in range(stored.ndim)]
    return stored, scales, stored * (scales.reshape(shape) if scales.ndim else scales).astype(np.float64)


@pytest.mark.parametrize("per_channel", [True, False])
def test_scales_are_those_of_the_int8_model(mixed: onnx.ModelProto, per_channel: bool) -> None:
    int8 = insert_qdq(mixed, per_channel=per_channel)
    for layer in layers_of(mixed):
        _, scales, _ = dequantized(int8, layer.name)
        ours = scales_of(layer.weights.matrix, layer.weights.pairs, per_channel=per_channel)
        assert ours.shape == ((len(layer.weights.matrix),) if per_channel else (1,))
        found = scales.reshape(-1)
        if per_channel:  # a filter of zeros takes the scale of its bias
            ours, found = (each[layer.weights.matrix.any(axis=1)] for each in (ours, found))
        np.testing.assert_array_equal(ours, found, err_msg=layer.name)


def some_rounded(model: onnx.ModelProto, *, per_channel: bool = True) -> dict[str, Rounded]:
    """Return int8 weights that no rounding gives, so that they are known again."""
    rng = np.random.default_rng(19)
    return {
        layer.name: Rounded(
            rng.integers(-127, 128, layer.weights.matrix.shape).astype(np.int8),
            scales_of(layer.weights.matrix, layer.weights.pairs, per_channel=per_channel),
            40.0,
            30.0,
        )
        for layer in layers_of(model)
    }


@pytest.mark.parametrize("per_channel", [True, False])
def test_install_weights_makes_the_layers_compute_with_them(mixed: onnx.ModelProto, per_channel: bool) -> None:
    int8 = insert_qdq(mixed, per_channel=per_channel)
    rounded = some_rounded(mixed, per_channel=per_channel)
    assert len(install(int8, mixed, rounded)) == 4
    onnx.checker.check_model(int8)
    for layer in layers_of(mixed):
        _, _, found = dequantized(int8, layer.name)
        wanted = rounded[layer.name].weights * scales_of(
            layer.weights.matrix, layer.weights.pairs, per_channel=per_channel
        )[:, None].astype(float)
        if per_channel:
            wanted[~layer.weights.matrix.any(axis=1)] = 0  # a filter of zeros stays one
        found = found.T if layer.name == "last" else found.reshape(len(found), -1)
        np.testing.assert_allclose(found, wanted, rtol=1e-12, err_msg=layer.name)
    assert np.isfinite(classifier.run(int8, normal(2, 3, 9, 9))).all()


def test_install_weights_changes_nothing_when_they_are_the_nearest(mixed: onnx.ModelProto) -> None:
    """So layouts and scales are the same on both sides: in the int8 model, and in what rounding makes."""
    int8 = insert_qdq(mixed, per_channel=True)
    rounded = {}
    for layer in layers_of(mixed):
        scales = scales_of(layer.weights.matrix, layer.weights.pairs, per_channel=True)
        rounded[layer.name] = round_weights(
            layer.weights.matrix, scales, np.eye(layer.inputs, dtype=np.float32), layer.weights.pairs
        )
    before = {name: dequantized(int8, name)[0].copy() for name in LAYERS}
    assert len(install(int8, mixed, rounded)) == 4
    for name in LAYERS:
        np.testing.assert_array_equal(dequantized(int8, name)[0], before[name], err_msg=name)


def test_install_weights_leaves_float_and_unknown_layers_alone(mixed: onnx.ModelProto) -> None:
    int8 = insert_qdq(mixed, per_channel=True, float_layers=["first"])
    rounded = some_rounded(mixed)
    del rounded["hidden"]
    before = dequantized(int8, "hidden")[0].copy()
    assert len(install(int8, mixed, rounded)) == 2
    np.testing.assert_array_equal(dequantized(int8, "hidden")[0], before)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    first = next(node for node in int8.graph.node if node.name == "first")
    originals = {tensor.name: numpy_helper.to_array(tensor) for tensor in mixed.graph.initializer}
    np.testing.assert_array_equal(tensors[first.input[1]], originals["w0"])


@pytest.mark.parametrize("per_channel", [True, False])
def test_install_weights_keeps_tiny_weights_beside_a_large_bias(per_channel: bool) -> None:
    """ONNX Runtime widens the scale of such weights, as a dead channel has them, so that their bias fits int32."""
    weights = normal(4, 3, 3, 3, seed=8) * np.array([1, 1e-7, 1e-10, 0], np.float32)[:, None, None, None]
    weights = weights if per_channel else weights * np.float32(1e-9)
    bias = np.array([0.5, 3, -2, 1], np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "w", "b"], ["x"], "c"),
        helper.make_node("Conv", ["x", "last"], ["y"], "last"),  # which stays in float
    ]
    model = model_of(nodes, {"w": weights, "b": bias, "last": normal(2, 4, 1, 1)}, "y")
    int8 = insert_qdq(model, per_channel=per_channel)
    layer = next(layers_of(model))
    scales = scales_of(layer.weights.matrix, layer.weights.pairs, per_channel=per_channel)
    rounded = round_weights(layer.weights.matrix, scales, np.eye(layer.inputs, dtype=np.float32), layer.weights.pairs)
    _, steps, before = dequantized(int8, "c")
    install(int8, model, {"c": rounded})
    _, _, after = dequantized(int8, "c")
    largest_step = steps.reshape(-1, 1, 1, 1)
    assert (np.abs(before - weights) <= 0.51 * largest_step).all()
    assert (np.abs(after - weights) <= 0.51 * largest_step).all()


def test_install_weights_leaves_weights_behind_identity_alone() -> None:
    """Equal tensors are stored once by the exporter; ONNX Runtime quantizes no weights behind Identity."""
    nodes = [
        helper.make_node("Identity", ["w"], ["same"], "identity"),
        helper.make_node("Conv", ["input", "w"], ["a"], "one"),
        helper.make_node("Conv", ["a", "same"], ["b"], "two"),
    ]
    model = model_of(nodes, {"w": normal(3, 3, 1, 1)}, "b")
    int8 = insert_qdq(model, per_channel=True)
    before = int8.SerializeToString()
    assert len(install(int8, model, some_rounded(model))) == 0
    assert int8.SerializeToString() == before


# -- files


def test_read_rounded_gives_back_what_was_written(mixed: onnx.ModelProto, tmp_path: Path) -> None:
    rounded = some_rounded(mixed)
    rounded["/layer1/odd:name.0"] = Rounded(np.array([[-127, 127]], np.int8), np.ones(1, np.float32), 12.5, -3.25)
    write_rounded(tmp_path / "w.npz", rounded)
    assert [path.name for path in tmp_path.iterdir()] == ["w.npz"]
    loaded = read_rounded(tmp_path / "w.npz")
    assert list(loaded) == list(rounded)
    for name, each in rounded.items():
        assert (loaded[name].sqnr_db, loaded[name].nearest_sqnr_db) == (each.sqnr_db, each.nearest_sqnr_db)
        assert loaded[name].weights.dtype == np.int8
        np.testing.assert_array_equal(loaded[name].weights, each.weights)
        np.testing.assert_array_equal(loaded[name].scales, each.scales)
    write_rounded(tmp_path / "again.npz", loaded)
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "w.npz").read_bytes()


def test_read_rounded_gives_nothing_when_there_was_nothing_to_round(tmp_path: Path) -> None:
    write_rounded(tmp_path / "w.npz", {})
    assert read_rounded(tmp_path / "w.npz") == {}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"text", None])
def test_read_rounded_says_what_to_do_when_the_file_is_none_of_ours(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "w.npz"
    if content is None:
        np.savez(path, other=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(ArtefactError) as caught:
        read_rounded(path)
    assert str(caught.value).startswith(f"{path}: invalid file of rounded weights (")
    assert str(caught.value).endswith("); delete it and build again")


def test_read_rounded_raises_nothing_else_when_bytes_are_damaged(mixed: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    rounded = some_rounded(mixed)
    write_rounded(path, rounded)
    whole = path.read_bytes()
    rng = random.Random(3)
    refused = 0
    for _ in range(200):
        path.write_bytes(cut_or_flipped(whole, rng))
        try:
            loaded = read_rounded(path)
        except ArtefactError:
            refused += 1
        else:  # a bit that means nothing, as of a time stamp
            assert all((loaded[name].weights == each.weights).all() for name, each in rounded.items())
    assert refused > 100


@pytest.mark.parametrize("size", [1, 255, 256, 257, 600])
def test_factor_in_place_is_the_cholesky_factor(size: int) -> None:
    columns = np.random.default_rng(size).normal(size=(size, size + 20))
    matrix = (columns @ columns.T / size + 0.1 * np.eye(size)).astype(np.float32)
    factor = matrix.copy()
    factor_in_place(factor)
    assert not np.triu(factor, 1).any()
    np.testing.assert_allclose(factor, np.linalg.cholesky(matrix.astype(np.float64)), atol=1e-4)


def test_factor_in_place_raises_when_the_matrix_is_not_positive_definite() -> None:
    with pytest.raises(np.linalg.LinAlgError, match="minor of order 3"):
        factor_in_place(np.diag(np.array([1, 2, -1, 4], np.float32)))


@pytest.mark.parametrize("inputs", [255, 300, 600])
def test_covariance_is_that_of_its_columns_when_wider_than_a_block(inputs: int) -> None:
    columns = correlated(900, inputs, inputs) + 3
    found = covariance_of(columns.copy())
    np.testing.assert_allclose(found, np.cov(columns.T.astype(np.float64), bias=True), atol=1e-4)
    np.testing.assert_array_equal(found, found.T)


def test_round_weights_rounds_alike_when_the_covariance_is_factored_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = correlated(800, 300, 1)
    weights = np.random.default_rng(2).normal(size=(16, 300)).astype(np.float32)
    scales = np.abs(weights).max(axis=1) / 127
    wanted = round_weights(weights, scales, covariance_of(columns.copy()), NO_PAIRS)
    monkeypatch.setattr(rounding, "_DOUBLE", 100)
    monkeypatch.setattr(rounding, "_ROWS", 128)
    found = round_weights(weights, scales, covariance_of(columns.copy()), NO_PAIRS)
    assert (found.weights != wanted.weights).mean() < 0.01  # ties that float32 decides otherwise
    assert found.sqnr_db == pytest.approx(wanted.sqnr_db, abs=0.05)
    assert found.nearest_sqnr_db == pytest.approx(wanted.nearest_sqnr_db, abs=1e-3)
