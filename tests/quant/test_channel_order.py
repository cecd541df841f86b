"""channel_order.py: the same function, and fewer weights that sum to too much beside each other."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.onnx_models import classifier
from pipeline.quant import channel_order
from pipeline.quant.channel_order import match, order_channels, pair_costs
from pipeline.quant.int8_weights import scales_of
from pipeline.quant.layers import weights_of

Float32 = npt.NDArray[np.float32]


def network(seed: int = 0) -> onnx.ModelProto:
    """A residual block, a depthwise convolution, a norm, squeeze-and-excitation and a classifier."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Float32:
        drawn: Float32 = rng.standard_t(3, shape).astype(np.float32) * np.float32(0.3)
        return drawn

    weights = {
        "w0": normal(8, 3, 3, 3),
        "b0": normal(8),
        "w1": normal(8, 8, 3, 3),
        "w2": normal(16, 8, 1, 1),
        "dw": normal(16, 1, 3, 3),
        "dwb": normal(16),
        **{name: np.abs(normal(16)) + np.float32(0.5) for name in ("gamma", "variance")},
        **{name: normal(16) for name in ("beta", "mean")},
        "s1": normal(4, 16, 1, 1),
        "s2": normal(16, 4, 1, 1),
        "w3": normal(12, 16, 1, 1),
        "fc": normal(5, 12),
        "fcb": normal(5),
        "low": np.float32(-1),
        "high": np.float32(2),
    }
    make = helper.make_node
    nodes = [
        make("Conv", ["image", "w0", "b0"], ["a"], "first", pads=[1, 1, 1, 1]),
        make("Relu", ["a"], ["r"], "relu"),
        make("Conv", ["r", "w1"], ["c"], "second", pads=[1, 1, 1, 1]),
        make("Add", ["c", "r"], ["sum"], "add"),
        make("Conv", ["sum", "w2"], ["e"], "expand"),
        make("Clip", ["e", "low", "high"], ["k"], "clip"),
        make("Conv", ["k", "dw", "dwb"], ["d"], "depthwise", group=16, pads=[1, 1, 1, 1]),
        make("BatchNormalization", ["d", "gamma", "beta", "mean", "variance"], ["n"], "norm"),
        make("GlobalAveragePool", ["n"], ["g"], "squeeze"),
        make("Conv", ["g", "s1"], ["q"], "reduce"),
        make("Relu", ["q"], ["qr"], "reduce_relu"),
        make("Conv", ["qr", "s2"], ["x"], "excite"),
        make("Sigmoid", ["x"], ["gate"], "gate"),
        make("Mul", ["n", "gate"], ["m"], "scale"),
        make("Conv", ["m", "w3"], ["p"], "project"),
        make("GlobalAveragePool", ["p"], ["h"], "pool"),
        make("Flatten", ["h"], ["f"], "flatten"),
        make("Gemm", ["f", "fc", "fcb"], ["logits"], "classifier", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 9, 9])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def layers(model: onnx.ModelProto) -> set[str]:
    return {weights.layer for weights in weights_of(model)}


def steps(model: onnx.ModelProto) -> dict[str, float]:
    """Return how much wider than without the bound each layer's scales are, as a mean of squares."""
    found = {}
    for weights in weights_of(model):
        free = scales_of(weights.matrix, weights.pairs[:0], per_channel=True)
        bound = scales_of(weights.matrix, weights.pairs, per_channel=True)
        found[weights.layer] = float(np.square(bound / free).mean())
    return found


@pytest.mark.parametrize("seed", range(4))
def test_order_channels_keeps_the_function_and_narrows_the_scales(seed: int) -> None:
    model = network(seed)
    images = np.random.default_rng(9).normal(size=(4, 3, 9, 9)).astype(np.float32)
    expected, before = classifier.run(model, images), steps(model)
    changed = order_channels(model, layers(model))
    onnx.checker.check_model(model, full_check=True)
    assert changed >= 2
    np.testing.assert_allclose(classifier.run(model, images), expected, atol=1e-5 * np.abs(expected).max())
    after = steps(model)
    assert sum(after.values()) < sum(before.values()) - 0.1
    assert after["first"] == pytest.approx(before["first"])  # its inputs are the image's channels


def test_order_channels_does_not_count_layers_in_float() -> None:
    model = network()
    before = model.SerializeToString()
    assert order_channels(model, ()) == 0
    assert model.SerializeToString() == before


def test_order_channels_leaves_a_stream_alone_when_something_else_reads_it() -> None:
    model = network()
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, None))
    images = np.random.default_rng(9).normal(size=(2, 3, 9, 9)).astype(np.float32)
    expected = classifier.run(model, images)
    weights = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    order_channels(model, layers(model))
    second = next(node for node in model.graph.node if node.name == "second")
    kept = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    np.testing.assert_array_equal(kept[second.input[1]], weights["w1"])
    np.testing.assert_allclose(classifier.run(model, images), expected, atol=1e-5 * np.abs(expected).max())


def test_pair_costs_sum_the_excess_over_the_largest_weight() -> None:
    weights = np.array([[[4.0], [3], [-2], [1]], [[1], [-1], [0.5], [0.25]]])  # two outputs, four channels
    expected = np.zeros((4, 4))
    for one, two in itertools.permutations(range(4), 2):
        for output, largest in zip(weights[:, :, 0], (4, 1), strict=True):
            if output[one] * output[two] > 0:
                expected[one, two] += max(0, abs(output[one]) / largest + abs(output[two]) / largest - 1) ** 2
    np.testing.assert_allclose(pair_costs(weights), expected)


def test_pair_costs_are_zero_when_an_output_has_no_weights() -> None:
    assert not pair_costs(np.zeros((3, 4, 9))).any()


@pytest.mark.parametrize("seed", range(5))
def test_match_pairs_every_channel_once_at_nearly_the_least_cost(seed: int) -> None:
    """Against all 105 ways to pair eight channels."""
    rng = np.random.default_rng(seed)
    cost = rng.exponential(size=(8, 8)) ** 2
    cost = cost + cost.T
    np.fill_diagonal(cost, 0)

    def ways(free: tuple[int, ...]) -> list[list[tuple[int, int]]]:
        if not free:
            return [[]]
        first, *rest = free
        return [
            [(first, other), *more] for other in rest for more in ways(tuple(each for each in rest if each != other))
        ]

    totals = sorted(sum(cost[pair] for pair in way) for way in ways(tuple(range(8))))
    assert len(totals) == 105
    found = match(cost)
    assert sorted(found.reshape(-1).tolist()) == list(range(8))
    assert sum(cost[one, two] for one, two in found) <= totals[5]


def test_pair_costs_count_every_nth_output_when_too_many_weights_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(1).uniform(-1, 1, (12, 6, 1)).astype(np.float32)
    weights /= np.abs(weights).max(axis=1, keepdims=True)
    large = int((np.abs(weights) > 0.5).sum())
    monkeypatch.setattr(channel_order, "_COMPARED", large * 6 // 3)  # a third of what all outputs take
    found = pair_costs(weights)
    monkeypatch.undo()
    np.testing.assert_allclose(found, 3 * pair_costs(weights[::3]), rtol=1e-5)
    assert not np.allclose(found, pair_costs(weights))
