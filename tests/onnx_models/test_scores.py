"""scores.py: what each ending of a network is said to be, held against what ONNX Runtime computes with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, version_converter

from pipeline.onnx_models.scores import Scores, find_scores

CLASSES = 4
Tail = Callable[["Graph", str], str]


class Graph:
    """Nodes that are added one behind the other, from the features [N, 6] on."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        made = [f"t{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), made, f"n{len(self.nodes)}", **attributes))
        return made[-1]

    def const(self, value: object, dtype: type = np.float32) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(value, dtype), f"c{len(self.tensors)}"))
        return self.tensors[-1].name

    def ints(self, *values: int) -> str:
        return self.const(list(values), np.int64)

    def dense(self, x: str, width: int, inputs: int = 6) -> str:
        weights = np.random.default_rng(len(self.tensors)).normal(0, 1, (inputs, width))
        return self.op("Gemm", x, self.const(weights), self.const(np.linspace(-1, 1, width)))


def model_of(tail: Tail, width: int = CLASSES, opset: int = 17) -> onnx.ModelProto:
    graph = Graph()
    output = tail(graph, graph.dense("x", width))
    made = helper.make_graph(
        graph.nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", None])],
        graph.tensors,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto) -> np.ndarray:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    features = np.random.default_rng(5).normal(0, 2, (32, 6)).astype(np.float32)
    return np.asarray(session.run(None, {"x": features})[0], np.float64)


def soft(g: Graph, x: str) -> str:
    return g.op("Softmax", x, axis=1)


def sigmoid(g: Graph, x: str) -> str:
    return g.op("Sigmoid", x)


def through(first: Tail, *more: Tail) -> Tail:
    def tail(g: Graph, x: str) -> str:
        for each in (first, *more):
            x = each(g, x)
        return x

    return tail


KEEPING: dict[str, Tail] = {
    "identity": lambda g, x: g.op("Identity", x),
    "reshape": lambda g, x: g.op("Reshape", x, g.ints(-1, CLASSES)),
    "reshape_by_shape": lambda g, x: g.op("Reshape", x, g.op("Shape", x)),
    "flatten": lambda g, x: g.op("Flatten", x),
    "unsqueeze_squeeze": lambda g, x: g.op("Squeeze", g.op("Unsqueeze", x, g.ints(2, 3)), g.ints(2, 3)),
    "transposed_and_back": lambda g, x: g.op("Transpose", g.op("Transpose", x, perm=[1, 0]), perm=[1, 0]),
    "float16_and_back": lambda g, x: g.op("Cast", g.op("Cast", x, to=TensorProto.FLOAT16), to=TensorProto.FLOAT),
    "dropout": lambda g, x: g.op("Dropout", x),
    "clip_0_1": lambda g, x: g.op("Clip", x, g.const(0.0), g.const(1.0)),
    "clip_epsilon": lambda g, x: g.op("Clip", x, g.const(1e-7), g.const(1 - 1e-7)),
    "max_epsilon": lambda g, x: g.op("Max", x, g.const(1e-12)),
    "add_epsilon": lambda g, x: g.op("Add", g.const(1e-8), x),
    "times_one": lambda g, x: g.op("Mul", x, g.const(1.0)),
    "over_one": lambda g, x: g.op("Div", x, g.const([1.0] * CLASSES)),
    "relu": lambda g, x: g.op("Relu", x),
    "there_and_back": lambda g, x: g.op("Div", g.op("Mul", x, g.const(100.0)), g.const(100.0)),
}


def spelt(g: Graph, x: str) -> str:
    raised = g.op("Exp", g.op("Sub", x, g.op("ReduceMax", x, axes=[1], keepdims=1)))
    return g.op("Div", raised, g.op("ReduceSum", raised, g.ints(1), keepdims=1))


def spelt_by_reciprocal(g: Graph, x: str) -> str:
    raised = g.op("Exp", x)
    summed = g.op("Unsqueeze", g.op("ReduceSum", raised, g.ints(-1), keepdims=0), g.ints(1))
    return g.op("Mul", g.op("Reciprocal", summed), raised)


def shares_of_relu(g: Graph, x: str) -> str:
    positive = g.op("Add", g.op("Relu", x), g.const(1e-6))
    return g.op("Div", positive, g.op("Clip", g.op("ReduceL1", positive, axes=[1], keepdims=1), g.const(1e-12)))


def over_planes(g: Graph, x: str) -> str:
    planes = g.op("Reshape", x, g.ints(-1, CLASSES, 1, 1))
    return g.op("Flatten", g.op("Softmax", planes, axis=1))


def averaged_map(g: Graph, x: str) -> str:
    """A softmax at each place of a map, and the mean of them all."""
    planes = g.op("Softmax", g.op("Reshape", x, g.ints(-1, CLASSES, 3, 1)), axis=1)
    return g.op("Flatten", g.op("GlobalAveragePool", planes))


def ensemble(g: Graph, x: str) -> str:
    return g.op("Mul", g.op("Add", soft(g, x), soft(g, g.dense("x", CLASSES))), g.const(0.5))


def stacked(g: Graph, x: str) -> str:
    both = g.op("Concat", g.op("Unsqueeze", soft(g, x), g.ints(1)), g.op("Unsqueeze", soft(g, x), g.ints(1)), axis=1)
    return g.op("ReduceMean", both, axes=[1], keepdims=0)


def exp_of_log_softmax(g: Graph, x: str) -> str:
    return g.op("Exp", g.op("LogSoftmax", x, axis=-1))


def exp_of_log_sum(g: Graph, x: str) -> str:
    return g.op("Exp", g.op("Sub", x, g.op("ReduceLogSumExp", x, axes=[1], keepdims=1)))


def two_classes(g: Graph, x: str) -> str:
    share = sigmoid(g, x)
    return g.op("Concat", g.op("Sub", g.const(1.0), share), share, axis=1)


SOFTMAX: dict[str, tuple[Tail, int]] = {
    "softmax": (soft, CLASSES),
    **{name: (through(soft, keep), CLASSES) for name, keep in KEEPING.items()},
    "all_that_keep": (through(soft, *KEEPING.values()), CLASSES),
    "negative_axis": (lambda g, x: g.op("Softmax", x, axis=-1), CLASSES),
    "in_float16": (
        lambda g, x: g.op("Cast", soft(g, g.op("Cast", x, to=TensorProto.FLOAT16)), to=TensorProto.FLOAT),
        CLASSES,
    ),
    "planes": (over_planes, CLASSES),
    "transposed": (
        lambda g, x: g.op("Transpose", g.op("Softmax", g.op("Transpose", x, perm=[1, 0]), axis=0), perm=[1, 0]),
        CLASSES,
    ),
    "spelt": (spelt, CLASSES),
    "spelt_by_reciprocal": (spelt_by_reciprocal, CLASSES),
    "shares_of_relu": (shares_of_relu, CLASSES),
    "exp_of_log_softmax": (exp_of_log_softmax, CLASSES),
    "exp_of_log_sum": (exp_of_log_sum, CLASSES),
    "averaged_map": (averaged_map, 3 * CLASSES),
    "ensemble": (ensemble, CLASSES),
    "mean": (lambda g, x: g.op("Mean", soft(g, x), soft(g, g.dense("x", CLASSES))), CLASSES),
    "stacked": (stacked, CLASSES),
    "one_of_two": (
        lambda g, x: g.op("Gather", g.op("Reshape", soft(g, x), g.ints(-1, 1, CLASSES)), g.const(0, np.int64), axis=1),
        CLASSES,
    ),
    "two_classes": (two_classes, 1),
    "of_three_digits": (
        lambda g, x: g.op("Div", g.op("Round", g.op("Mul", soft(g, x), g.const(1000.0))), g.const(1000.0)),
        CLASSES,
    ),
    "with_a_floor": (
        lambda g, x: (lambda share: g.op("Where", g.op("Less", share, g.const(1e-4)), g.const(0.0), share))(soft(g, x)),
        CLASSES,
    ),
}


@pytest.mark.parametrize("name", SOFTMAX)
def test_scores_are_softmax_when_outputs_are_probabilities_of_one_class(name: str) -> None:
    model = model_of(*SOFTMAX[name])
    scores = run(model)
    assert (scores >= 0).all()
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=2e-3)
    assert find_scores(model) is Scores.SOFTMAX


@pytest.mark.parametrize("opset", [9, 12])
@pytest.mark.parametrize("axis", [None, 1, -1])
def test_scores_are_softmax_when_opset_is_before_13(opset: int, axis: int | None) -> None:
    attributes = {} if axis is None else {"axis": axis}
    if opset == 9 and axis == -1:
        pytest.skip("negative axes came with opset 11")
    model = model_of(lambda g, x: g.op("Softmax", x, **attributes), opset=opset)
    assert find_scores(model) is Scores.SOFTMAX
    assert find_scores(version_converter.convert_version(model, 17)) is Scores.SOFTMAX


def test_scores_are_softmax_when_some_outputs_are_cut_off() -> None:
    cut = through(soft, lambda g, x: g.op("Slice", x, g.ints(1), g.ints(CLASSES), g.ints(1)))
    assert (run(model_of(cut)).sum(axis=1) < 1).all()
    assert find_scores(model_of(cut)) is Scores.SOFTMAX


def spelt_sigmoid(g: Graph, x: str) -> str:
    return g.op("Div", g.const(1.0), g.op("Add", g.op("Exp", g.op("Neg", x)), g.const(1.0)))


def spelt_sigmoid_reciprocal(g: Graph, x: str) -> str:
    return g.op("Reciprocal", g.op("Add", g.const(1.0), g.op("Exp", g.op("Neg", x))))


def sigmoid_of_tanh(g: Graph, x: str) -> str:
    return g.op("Mul", g.op("Add", g.op("Tanh", g.op("Mul", x, g.const(0.5))), g.const(1.0)), g.const(0.5))


def of_two_heads(g: Graph, x: str) -> str:
    return g.op("Concat", sigmoid(g, x), sigmoid(g, g.dense("x", 2)), axis=1)


SIGMOID: dict[str, Tail] = {
    "sigmoid": sigmoid,
    **{name: through(sigmoid, keep) for name, keep in KEEPING.items()},
    "all_that_keep": through(sigmoid, *KEEPING.values()),
    "hard": lambda g, x: g.op("HardSigmoid", x, alpha=0.2),
    "spelt": spelt_sigmoid,
    "spelt_by_reciprocal": spelt_sigmoid_reciprocal,
    "of_tanh": sigmoid_of_tanh,
    "of_the_negative": lambda g, x: g.op("Sub", g.const(1.0), sigmoid(g, x)),
    "two_heads": of_two_heads,
    "larger_of_two": lambda g, x: g.op("Max", soft(g, x), soft(g, g.dense("x", CLASSES))),
    "objectness": lambda g, x: g.op("Mul", sigmoid(g, x), sigmoid(g, g.dense("x", 1))),
}


@pytest.mark.parametrize("name", SIGMOID)
def test_scores_are_sigmoid_when_each_label_has_one_by_itself(name: str) -> None:
    model = model_of(SIGMOID[name])
    scores = run(model)
    assert ((scores >= 0) & (scores <= 1 + 1e-6)).all()
    assert np.ptp(scores.sum(axis=1)) > 0.1
    assert find_scores(model) is Scores.SIGMOID


LOG_SOFTMAX: dict[str, Tail] = {
    "log_softmax": lambda g, x: g.op("LogSoftmax", x, axis=1),
    "reshaped": lambda g, x: g.op("Reshape", g.op("LogSoftmax", x, axis=-1), g.ints(-1, CLASSES)),
    "log_of_softmax": through(soft, lambda g, x: g.op("Log", g.op("Add", x, g.const(1e-9)))),
    "less_log_sum": lambda g, x: g.op("Sub", x, g.op("ReduceLogSumExp", x, axes=[1], keepdims=1)),
    "less_log_of_sum": lambda g, x: g.op("Sub", x, g.op("Log", g.op("ReduceSum", g.op("Exp", x), g.ints(1)))),
}


@pytest.mark.parametrize("name", LOG_SOFTMAX)
def test_scores_are_log_softmax_when_their_exponentials_sum_to_1(name: str) -> None:
    model = model_of(LOG_SOFTMAX[name])
    np.testing.assert_allclose(np.exp(run(model)).sum(axis=1), 1, rtol=1e-5)
    assert find_scores(model) is Scores.LOG_SOFTMAX


def by_groups(g: Graph, x: str) -> str:
    pairs = g.op("Softmax", g.op("Reshape", x, g.ints(-1, 2, CLASSES // 2)), axis=2)
    return g.op("Reshape", pairs, g.ints(-1, CLASSES))


def spelt_by_groups(g: Graph, x: str) -> str:
    raised = g.op("Exp", g.op("Reshape", x, g.ints(-1, 2, CLASSES // 2)))
    return g.op("Flatten", g.op("Div", raised, g.op("ReduceSum", raised, g.ints(2), keepdims=1)))


def of_ones(g: Graph, x: str) -> str:
    return g.op("Flatten", g.op("Softmax", g.op("Reshape", x, g.ints(-1, CLASSES, 1, 1)), axis=-1))


OTHER: dict[str, Tail] = {
    "hardmax": lambda g, x: g.op("Hardmax", x, axis=1),
    "groups": by_groups,
    "groups_spelt": spelt_by_groups,
    "axis_of_one": of_ones,
    "percent": lambda g, x: g.op("Mul", soft(g, x), g.const(100.0)),
    "rest": lambda g, x: g.op("Sub", g.const(1.0), soft(g, x)),
    "weighted": lambda g, x: g.op("Mul", soft(g, x), g.const([1, 2, 3, 4])),
    "cut_to_0_1": lambda g, x: g.op("Clip", x, g.const(0.0), g.const(1.0)),
    "two_softmaxes": lambda g, x: g.op("Concat", soft(g, x), soft(g, x), axis=1),
    "exponentials": lambda g, x: g.op("Exp", x),
    "root": lambda g, x: g.op("Sqrt", soft(g, x)),
    "square": lambda g, x: g.op("Pow", soft(g, x), g.const(2.0)),
    "log_sigmoid": lambda g, x: g.op("Log", sigmoid(g, x)),
}


@pytest.mark.parametrize("name", OTHER)
def test_scores_are_other_when_they_are_neither_logits_nor_shares_of_classes(name: str) -> None:
    model = model_of(OTHER[name])
    run(model)
    assert find_scores(model) is Scores.OTHER


def attention(g: Graph, x: str) -> str:
    return g.op("MatMul", soft(g, x), g.const(np.random.default_rng(1).normal(0, 1, (CLASSES, CLASSES))))


LOGITS: dict[str, Tail] = {
    "gemm": lambda g, x: x,
    "identity": lambda g, x: g.op("Identity", x),
    "relu": lambda g, x: g.op("Relu", x),
    "temperature": lambda g, x: g.op("Div", x, g.const(0.07)),
    "bias": lambda g, x: g.op("Add", x, g.const([1, 2, 3, 4])),
    "softmax_inside": attention,
    "swish": lambda g, x: g.op("Mul", x, sigmoid(g, x)),
    "soft_capped": lambda g, x: g.op("Mul", g.op("Tanh", g.op("Div", x, g.const(30.0))), g.const(30.0)),
    "temperature_of_log_softmax": lambda g, x: g.op("Mul", g.op("LogSoftmax", x, axis=1), g.const(2.0)),
    "normalised": lambda g, x: g.op("Div", x, g.op("ReduceL2", x, axes=[1], keepdims=1)),
    "clipped": lambda g, x: g.op("Clip", x, g.const(-3.0), g.const(3.0)),
    "two_networks": lambda g, x: g.op("Add", x, g.dense("x", CLASSES)),
    "square_of_logits": lambda g, x: g.op("Pow", x, g.const(2.0)),
    "either": lambda g, x: g.op("Where", g.op("Less", x, g.const(0.0)), g.op("Neg", x), x),
}


@pytest.mark.parametrize("name", LOGITS)
def test_scores_are_logits_when_nothing_bounds_them(name: str) -> None:
    model = model_of(LOGITS[name])
    run(model)
    assert find_scores(model) is Scores.LOGITS


def test_find_scores_leaves_the_model_as_it_was() -> None:
    model = model_of(spelt)
    before = model.SerializeToString()
    find_scores(model)
    assert model.SerializeToString() == before


def test_find_scores_ends_when_a_graph_is_very_deep() -> None:
    def deep(g: Graph, x: str) -> str:
        for _ in range(2000):
            x = g.op("Add", x, x)
        return x

    assert find_scores(model_of(deep)) is Scores.LOGITS
