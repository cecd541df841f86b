"""equalization.py: the same function, channels of like ranges, and hands off everything unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pipeline.models import exporter
from pipeline.models.resnet import BasicBlock, conv1x1
from pipeline.onnx_models import classifier
from pipeline.quant import placement, qdq, streams
from pipeline.quant.equalization import channel_extremes, equalize, scaled_tensors
from pipeline.quant.qmath import max_range
from pipeline.quant.streams import FACTORS, find_streams
from pipeline.runtimes.activations import ActivationReader

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

SIDE = 16


class Residual(nn.Module):
    """Pooling, blocks with and without projection, a hidden layer before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.layer1 = BasicBlock(8, 8, 1, None, 64)
        self.layer2 = BasicBlock(8, 16, 2, nn.Sequential(nn.AvgPool2d(2), conv1x1(8, 16), nn.BatchNorm2d(16)), 64)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.hidden, self.relu, self.fc = nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gap(self.layer2(self.layer1(self.pool(self.stem(x)))))
        logits: Tensor = self.fc(self.relu(self.hidden(x.flatten(1))))
        return logits


class PreActivation(nn.Module):
    """The block of an iResNet: a norm that no convolution can take in begins it, an addition ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.conv1, self.bn2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu, self.conv2, self.bn3 = nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.bn3(self.conv2(self.relu(self.bn2(self.conv1(self.bn1(x))))))
        return x + residual


def images() -> Float32:
    return np.random.default_rng(0).normal(0.2, 1, (8, 3, SIDE, SIDE)).astype(np.float32)


def exported(network: nn.Module, seed: int) -> onnx.ModelProto:
    """Export a network whose channels are of very different sizes."""
    torch.manual_seed(seed)
    with torch.no_grad():
        network.train()(torch.from_numpy(images()))  # so that norms know their inputs
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(10 ** torch.empty_like(module.weight).uniform_(-1, 0.3))
                nn.init.uniform_(module.bias, 0, 0.3)
                module.bias.mul_(module.weight)
    return exporter.to_onnx(network, (3, SIDE, SIDE))


@pytest.fixture(scope="module")
def residual() -> onnx.ModelProto:
    torch.manual_seed(1)
    return exported(Residual(), 1)


@pytest.fixture(scope="module")
def iresnet() -> onnx.ModelProto:
    torch.manual_seed(2)
    stem = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    tail = (nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return exported(nn.Sequential(*stem, PreActivation(), PreActivation(), *tail), 2)


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def largest_of(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, Float64]:
    """Return the largest magnitude of each channel over the images."""
    reader = ActivationReader(model, [*names, model.graph.output[0].name], threads=1)
    found: dict[str, Float64] = {}
    for image in images():
        values = reader.read(image)
        for name in names:
            seen = np.abs(values[name]).max(axis=(0, *range(2, values[name].ndim))).astype(np.float64)
            found[name] = np.maximum(found.get(name, 0.0), seen)
    return found


def equalized(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, float]]:
    """Return what the stage makes of a model; the argument is not changed."""
    after = copy_of(model)
    spread = equalize(after, largest_of(model, list(scaled_tensors(model, placement.observed_tensors(model)))))
    onnx.checker.check_model(after)
    return after, spread


def assert_same_answers(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    expected = classifier.run(before, images())
    assert np.abs(expected).max() > 0
    assert classifier.relative_error(expected, classifier.run(after, images())) < 1e-5


def weights_of(model: onnx.ModelProto) -> dict[str, list[np.ndarray]]:
    """Return the constants of each layer by its name."""
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in known:
            known[node.output[0]] = known[node.input[0]]
    return {node.name: [known[name] for name in node.input if name in known] for node in model.graph.node}


# -- the same function, better ranges


@pytest.mark.parametrize("name", ["residual", "iresnet"])
def test_equalize_changes_no_answer_but_the_weights(name: str, request: pytest.FixtureRequest) -> None:
    model: onnx.ModelProto = request.getfixturevalue(name)
    after, spread = equalized(model)
    assert_same_answers(model, after)
    assert len(spread) >= 3
    assert all(ratio > 1.2 for ratio in spread.values()), spread


def test_equalize_changes_no_answer_when_it_changes_weights_in_float32_as_large_ones(
    residual: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_LARGE", 0)
    after, spread = equalized(residual)
    assert max(spread.values()) > 1.5
    assert_same_answers(residual, after)


def test_equalize_changes_no_answer_of_the_fitted_network(tiny_model: onnx.ModelProto, batch_nchw: Float32) -> None:
    after = copy_of(tiny_model)
    names = list(scaled_tensors(tiny_model, placement.observed_tensors(tiny_model)))
    reader = ActivationReader(tiny_model, names, threads=1)
    values = reader.read(batch_nchw[0])
    equalize(
        after,
        {
            name: np.abs(values[name][0].astype(np.float64)).max(axis=tuple(range(1, values[name].ndim - 1)))
            for name in names
        },
    )
    expected = classifier.run(tiny_model, batch_nchw)
    assert classifier.relative_error(expected, classifier.run(after, batch_nchw)) < 1e-5
    assert tiny_model.SerializeToString() != after.SerializeToString()


@pytest.mark.parametrize("name", ["residual", "iresnet"])
def test_equalize_brings_the_ranges_of_channels_closer(name: str, request: pytest.FixtureRequest) -> None:
    model: onnx.ModelProto = request.getfixturevalue(name)
    names = list(scaled_tensors(model, placement.observed_tensors(model)))
    before, after = largest_of(model, names), largest_of(equalized(model)[0], names)
    assert len(names) >= 4

    def evenness(of: Mapping[str, Float64]) -> list[float]:
        """Return the mean channel's range as a share of the widest one's."""
        return [float(np.mean(ranges / ranges.max())) for ranges in of.values()]

    improved = [ours > theirs for ours, theirs in zip(evenness(after), evenness(before), strict=True)]
    assert np.mean(evenness(after)) > np.mean(evenness(before)) + 0.1
    assert np.mean(improved) > 0.8


def test_equalize_makes_the_int8_model_better(residual: onnx.ModelProto) -> None:
    expected = classifier.run(residual, images())

    def error(model: onnx.ModelProto) -> float:
        names = placement.observed_tensors(model)
        reader = ActivationReader(model, [*names, "output"], threads=1)
        values = [dict(reader.read(image)) for image in images()[:1]]
        low, high = ({name: f(value) for name, value in values[0].items()} for f in (np.min, np.max))
        for image in images()[1:]:
            for name, value in reader.read(image).items():
                low[name], high[name] = min(low[name], value.min()), max(high[name], value.max())
        ranges = {name: max_range(float(low[name]), float(high[name])) for name in names}
        int8 = qdq.insert_qdq(model, ranges, per_channel=True)
        return float(np.square(classifier.run(int8, images()) - expected).mean())

    assert error(equalized(residual)[0]) < 0.8 * error(residual)


# -- small graphs


def graph(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, npt.NDArray[np.generic]], output: str, rank: int = 4
) -> onnx.ModelProto:
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * rank)],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    return model


def normal(*shape: int, seed: int = 3) -> Float32:
    """Return weights whose first axis spans three orders of magnitude."""
    rng = np.random.default_rng(seed)
    sizes = 10 ** rng.uniform(-2, 1, (shape[0], *[1] * (len(shape) - 1)))
    return (rng.normal(0, 0.5, shape) * sizes).astype(np.float32)


WEIGHTS = {"w0": normal(8, 3, 3, 3), "b0": normal(8, seed=4), "w1": normal(8, 8, 1, 1, seed=5), "b1": normal(8, seed=6)}
FIRST = helper.make_node("Conv", ["input", "w0", "b0"], ["x"], "first")
LAST = helper.make_node("Conv", ["y", "w1", "b1"], ["z"], "last")


def test_equalize_takes_the_square_root_of_the_ratio_of_ranges_down_to_a_least_one() -> None:
    """By hand, on two layers: channels at 1, 1/4, 1/10000 and 0 of the widest range."""
    weights = np.zeros((4, 3, 1, 1), np.float32)
    weights[:, 0, 0, 0] = [8, -2, 8e-4, 0]
    readers = normal(2, 4, 1, 1)
    model = graph(
        [
            helper.make_node("Conv", ["input", "w", "b"], ["x"], "first"),
            helper.make_node("Identity", ["x"], ["y"], "same"),
            helper.make_node("Conv", ["y", "v"], ["z"], "last"),
        ],
        {"w": weights, "b": np.ones(4, np.float32), "v": readers},
        "z",
    )
    factors = np.array([1, 0.5, 0.1, 0.1])
    spread = equalize(model, {"x": np.array([8, 2, 8e-4, 0.0])})
    assert spread == {"x": pytest.approx(10)}
    after = weights_of(model)
    np.testing.assert_allclose(after["first"][0], weights / factors[:, None, None, None], rtol=1e-6)
    np.testing.assert_allclose(after["first"][1], 1 / factors, rtol=1e-6)
    np.testing.assert_allclose(after["last"][0], readers * factors[:, None, None], rtol=1e-6)
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT}
    assert not {"w", "b", "v"} & {tensor.name for tensor in model.graph.initializer}  # no weights that nobody reads


def test_equalize_leaves_a_stream_alone_when_its_ranges_are_zero_or_unknown() -> None:
    model = graph([FIRST, helper.make_node("Relu", ["x"], ["y"], "relu"), LAST], WEIGHTS, "z")
    for largest in ({}, {"y": np.zeros(8)}):
        after = copy_of(model)
        assert equalize(after, largest) == {}
        assert weights_of(after).keys() == weights_of(model).keys()
        assert all(
            (ours == theirs).all()
            for name in ("first", "last")
            for ours, theirs in zip(weights_of(after)[name], weights_of(model)[name], strict=True)
        )


PASSING = {
    "Relu": helper.make_node("Relu", ["x"], ["y"], "n"),
    "MaxPool": helper.make_node("MaxPool", ["x"], ["y"], "n", kernel_shape=[3, 3], strides=[2, 2]),
    "AveragePool": helper.make_node("AveragePool", ["x"], ["y"], "n", kernel_shape=[2, 2], pads=[1, 1, 1, 1]),
    "GlobalAveragePool": helper.make_node("GlobalAveragePool", ["x"], ["y"], "n"),
    "Identity": helper.make_node("Identity", ["x"], ["y"], "n"),
    "Add": helper.make_node("Add", ["x", "x"], ["y"], "n"),
    "BatchNormalization": helper.make_node("BatchNormalization", ["x", "s", "o", "m", "v"], ["y"], "n"),
}
STATISTICS = {"s": normal(8, seed=7), "o": normal(8, seed=8), "m": normal(8, seed=9), "v": np.abs(normal(8, seed=10))}


@pytest.mark.parametrize("kind", PASSING)
def test_equalize_rescales_through_what_passes_factors_on(kind: str) -> None:
    model = graph([FIRST, PASSING[kind], LAST], {**WEIGHTS, **STATISTICS}, "z")
    found = find_streams(model, FACTORS)
    assert len(found) == (2 if kind == "BatchNormalization" else 1)
    assert sorted(name for stream in found for name in stream.tensors) == ["x", "y"]
    after = copy_of(model)
    spread = equalize(after, largest_of(model, ["x", "y"]))
    assert all(ratio > 2 for ratio in spread.values())
    assert_same_answers(model, after)


@pytest.mark.parametrize("groups", [2, 8])
def test_equalize_rescales_on_either_side_of_a_grouped_convolution(groups: int) -> None:
    nodes = [
        FIRST,
        helper.make_node("Relu", ["x"], ["r"], "r"),
        helper.make_node("Conv", ["r", "v", "b1"], ["w"], "grouped", group=groups, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["w"], ["y"], "s"),
        LAST,
    ]
    model = graph(nodes, {**WEIGHTS, "v": normal(8, 8 // groups, 3, 3, seed=11)}, "z")
    assert [stream.tensors for stream in find_streams(model, FACTORS)] == [["x", "r"], ["w", "y"]]
    after = copy_of(model)
    one, other = np.linspace(1, 0.04, 8), np.linspace(0.09, 1, 8)
    equalize(after, {"r": one, "y": other})
    assert_same_answers(model, after)
    found = weights_of(after)["grouped"][0].reshape(groups, 8 // groups, 8 // groups, 3, 3)
    given = normal(8, 8 // groups, 3, 3, seed=11).reshape(found.shape)
    reads, writes = np.sqrt(one).reshape(groups, -1), np.sqrt(other).reshape(groups, -1)
    expected = given * reads[:, None, :, None, None] / writes[:, :, None, None, None]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


TOKENS: dict[str, npt.NDArray[Any]] = {
    "shape": np.array([0, 3, SIDE * SIDE], np.int64),
    "scale": np.abs(normal(3, seed=12)) + 0.1,
    "offset": normal(3, seed=13),
    "wide": normal(3, 5, seed=14),
    "tall": normal(3, 4, seed=15),
}


def tokens(*more: onnx.NodeProto, axis: int = -1) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Reshape", ["input", "shape"], ["rows"], "reshape"),
        helper.make_node("Transpose", ["rows"], ["tokens"], "transpose", perm=[0, 2, 1]),
        helper.make_node("LayerNormalization", ["tokens", "scale", "offset"], ["normed"], "norm", axis=axis),
        helper.make_node("MatMul", ["normed", "wide"], ["a"], "one"),
        helper.make_node("MatMul", ["normed", "tall"], ["b"], "other"),
        *more,
        helper.make_node("Concat", ["a", "b"], ["z"], "concat", axis=2),
    ]
    return graph(nodes, TOKENS, "z", rank=3)


def test_equalize_rescales_what_a_layer_normalization_gives_to_matrix_products() -> None:
    model, largest = tokens(), np.array([4.0, 1.0, 0.16])
    assert scaled_tensors(model, ["normed"]) == {"normed": -1}
    after = copy_of(model)
    assert equalize(after, {"normed": largest}) == {"normed": pytest.approx(5)}
    assert_same_answers(model, after)
    factors = np.array([1.0, 0.5, 0.2])
    found = weights_of(after)
    np.testing.assert_allclose(found["norm"], [TOKENS["scale"] / factors, TOKENS["offset"] / factors], rtol=1e-6)
    np.testing.assert_allclose(found["one"][0], TOKENS["wide"] * factors[:, None], rtol=1e-6)
    np.testing.assert_allclose(found["other"][0], TOKENS["tall"] * factors[:, None], rtol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        tokens(helper.make_node("Relu", ["normed"], ["unused"], "relu")),
        tokens(helper.make_node("MatMul", ["rows", "normed"], ["unused"], "product")),
    ],
)
def test_equalize_leaves_a_layer_normalization_that_others_read(model: onnx.ModelProto) -> None:
    assert scaled_tensors(model, ["normed"]) == {}
    assert equalize(copy_of(model), {"normed": np.array([4.0, 1.0, 0.16])}) == {}


def test_channel_extremes_are_along_their_axis() -> None:
    values = normal(1, 4, 6, seed=16)
    np.testing.assert_array_equal(channel_extremes(values, 1), [np.abs(values[0, c]).max() for c in range(4)])
    np.testing.assert_array_equal(channel_extremes(values, -1), [np.abs(values[0, :, c]).max() for c in range(6)])


FIXING = {
    "Sigmoid": [helper.make_node("Sigmoid", ["x"], ["y"], "n")],
    "LeakyRelu": [helper.make_node("LeakyRelu", ["x"], ["y"], "n", alpha=0.1)],
    "PRelu": [helper.make_node("PRelu", ["x", "slopes"], ["y"], "n")],
    "Clip": [helper.make_node("Clip", ["x", "zero", "six"], ["y"], "n")],
    "HardSwish": [helper.make_node("HardSwish", ["x"], ["y"], "n")],
    "Tanh": [helper.make_node("Tanh", ["x"], ["y"], "n")],
    "Softmax": [helper.make_node("Softmax", ["x"], ["y"], "n", axis=1)],
    "Concat": [helper.make_node("Concat", ["x", "x"], ["xx"], "n"), helper.make_node("Slice", ["xx", *"abc"], ["y"])],
    "Mul of activations": [helper.make_node("Mul", ["x", "x"], ["y"], "n")],
    "Mul by a constant": [helper.make_node("Mul", ["x", "six"], ["y"], "n")],
    "Add of a constant": [helper.make_node("Add", ["x", "six"], ["y"], "n")],
    "Sub": [helper.make_node("Relu", ["x"], ["r"], "r"), helper.make_node("Sub", ["x", "r"], ["y"], "n")],
    "InstanceNormalization": [helper.make_node("InstanceNormalization", ["x", "slopes_8", "slopes_8"], ["y"], "n")],
    "ReduceMean of channels": [
        helper.make_node("ReduceMean", ["x"], ["mean"], "n", axes=[1], keepdims=1),
        helper.make_node("Add", ["x", "mean"], ["y"], "m"),
    ],
    "unknown beside the layer": [
        helper.make_node("Relu", ["x"], ["r"], "r"),
        helper.make_node("Sigmoid", ["r"], ["open"], "s"),
        helper.make_node("GlobalAveragePool", ["open"], ["gate"], "g"),
        helper.make_node("Mul", ["r", "gate"], ["y"], "m"),
    ],
    "norm of statistics that are computed": [
        helper.make_node("Abs", ["m"], ["computed"], "a"),
        helper.make_node("BatchNormalization", ["x", "s", "o", "m", "computed"], ["y"], "n"),
    ],
}
FIXING_CONSTANTS = {
    "slopes": np.full((8, 1, 1), 0.2, np.float32),
    "slopes_8": np.full(8, 0.2, np.float32),
    "zero": np.float32(0),
    "six": np.float32(6),
    "a": np.array([0], np.int64),
    "b": np.array([8], np.int64),
    "c": np.array([1], np.int64),
}


@pytest.mark.parametrize("kind", FIXING)
def test_equalize_leaves_alone_what_anything_else_reads_or_writes(kind: str) -> None:
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in FIXING[kind]]
    constants = {name: np.asarray(value) for name, value in {**WEIGHTS, **STATISTICS, **FIXING_CONSTANTS}.items()}
    for node in nodes:
        if node.op_type == "Concat":
            node.attribute.append(helper.make_attribute("axis", 1))
    model = graph([FIRST, *nodes, LAST], constants, "z")
    assert [stream.tensors for stream in find_streams(model, FACTORS)] == []
    after = copy_of(model)
    everything = {name: np.linspace(1, 9, 8) for node in nodes for name in (*node.input, *node.output)}
    assert equalize(after, everything) == {}
    for name in ("first", "last"):
        for ours, theirs in zip(weights_of(after)[name], weights_of(model)[name], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_streams_leave_the_models_input_and_outputs_alone() -> None:
    """An output in the middle of the network too, through Identity or not."""
    relu = helper.make_node("Relu", ["x"], ["y"], "relu")
    model = graph([FIRST, relu, LAST], WEIGHTS, "z")
    assert [stream.tensors for stream in find_streams(model, FACTORS)] == [["x", "y"]]
    for output in ("x", "y"):
        watched = copy_of(model)
        watched.graph.output.append(onnx.ValueInfoProto(name=output))
        assert find_streams(watched, FACTORS) == []
    renamed = copy_of(model)
    renamed.graph.node.append(helper.make_node("Identity", ["y"], ["features"], "identity"))
    renamed.graph.output.append(onnx.ValueInfoProto(name="features"))
    assert find_streams(renamed, FACTORS) == []


def test_streams_are_whole_when_residual(tiny_model: onnx.ModelProto) -> None:
    """All that writes to or reads from a residual stream, through its ReLUs and pooling, is rescaled as one."""
    found = [
        (sorted(node.name for node in stream.writers), sorted(node.name for node in stream.readers))
        for stream in find_streams(tiny_model, FACTORS)
    ]
    block, last = "/layer1/layer1.0", "/layer2/layer2.0"
    assert sorted(found) == [
        (["/conv1/Conv", f"{block}/conv2/Conv"],
         [f"{block}/conv1/Conv", f"{last}/conv1/Conv", f"{last}/downsample/downsample.0/Conv"]),
        ([f"{block}/conv1/Conv"], [f"{block}/conv2/Conv"]),
        ([f"{last}/conv1/Conv"], [f"{last}/conv2/Conv"]),
        ([f"{last}/conv2/Conv", f"{last}/downsample/downsample.0/Conv"], ["/fc/Gemm"]),
    ]  # fmt: skip


def test_equalize_gives_a_residual_stream_the_widest_of_its_ranges() -> None:
    """A channel that one of its tensors fills is not to be widened for another that leaves it empty."""
    nodes = [
        FIRST,
        helper.make_node("Conv", ["x", "w1", "b1"], ["r"], "branch"),
        helper.make_node("Add", ["x", "r"], ["y"], "add"),
        helper.make_node("Conv", ["y", "w1", "b1"], ["z"], "last"),
    ]
    model = graph(nodes, WEIGHTS, "z")
    after = copy_of(model)
    one = np.array([1, 0.04, 1, 1, 1, 1, 1, 0.25])
    other = np.array([2, 0.32, 0.02, 0.02, 2, 2, 2, 0.02])
    equalize(after, {"x": one, "y": other})
    factors = np.sqrt([1, 0.16, 1, 1, 1, 1, 1, 0.25])
    np.testing.assert_allclose(weights_of(after)["first"][1], WEIGHTS["b0"] / factors, rtol=1e-6)
    assert_same_answers(model, after)


# -- constants that nodes share


def test_equalize_gives_each_layer_weights_of_its_own_when_they_share_them() -> None:
    """By name, and as the exporter does it, behind Identity; norms with one tensor in two roles too."""
    nodes = [
        helper.make_node("Identity", ["w1"], ["w1_again"], "identity"),
        helper.make_node("Identity", ["b1"], ["b1_again"], "identity_2"),
        FIRST,
        helper.make_node("Relu", ["x"], ["r0"], "r0"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["a"], "one"),
        helper.make_node("Relu", ["a"], ["r1"], "r1"),
        helper.make_node("Conv", ["r1", "w1_again", "b1_again"], ["b"], "two"),
        helper.make_node("Relu", ["b"], ["r2"], "r2"),
        helper.make_node("Conv", ["r2", "w1", "b1_again"], ["c"], "three"),
        helper.make_node("BatchNormalization", ["c", "s", "b1", "b1_again", "v"], ["d"], "norm"),
        helper.make_node("Relu", ["d"], ["r3"], "r3"),
        helper.make_node("BatchNormalization", ["r3", "v", "s", "s", "v"], ["y"], "norm_2"),
        LAST,
    ]
    model = graph(nodes, {**WEIGHTS, **STATISTICS}, "z")
    after, spread = equalized(model)
    assert len(spread) == 6
    assert_same_answers(model, after)


# -- graphs in which axis 1 is not what it seems


def test_equalize_changes_no_answer_when_a_gemms_bias_is_a_row_or_a_number() -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "g0", "row"], ["a"], "one", transB=1),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Gemm", ["b", "g1", "number"], ["c"], "two", transB=1),
        helper.make_node("Relu", ["c"], ["d"], "relu_2"),
        helper.make_node("Gemm", ["d", "g2"], ["z"], "three", transB=1, alpha=0.5),
    ]
    constants = {
        "g0": normal(8, 3),
        "row": normal(8, seed=11)[None],
        "g1": normal(6, 8, seed=12),
        "number": np.array([0.3], np.float32),
        "g2": normal(4, 6, seed=13),
    }
    model = graph(nodes, constants, "z", rank=2)
    assert_same_answers(model, equalized(model)[0])


def test_equalize_changes_no_answer_when_an_addition_spreads_one_channel_over_all() -> None:
    nodes = [
        FIRST,
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "map"], ["one"], "map"),
        helper.make_node("Add", ["r", "one"], ["y"], "add"),
        LAST,
    ]
    model = graph(nodes, {**WEIGHTS, "map": normal(1, 8, 1, 1)}, "z")
    assert_same_answers(model, equalized(model)[0])


@pytest.mark.parametrize(
    ("moved", "weights", "rank"),
    [
        # As in ECA: a convolution along the channels.
        (helper.make_node("Reshape", ["p", "row"], ["q"], "n"), normal(1, 1, 3), 3),
        # Two halves beside each other: axis 1 is the halves.
        (helper.make_node("Reshape", ["p", "halves"], ["q"], "n"), normal(4, 2, 1, 1), 4),
        (helper.make_node("ReduceMean", ["p"], ["q"], "n", axes=[1], keepdims=1), normal(4, 1, 1, 1), 4),
    ],
)
def test_equalize_changes_no_answer_when_channels_are_moved_after_pooling(
    moved: onnx.NodeProto, weights: Float32, rank: int
) -> None:
    nodes = [
        FIRST,
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        moved,
        helper.make_node("Conv", ["q", "v"], ["z"], "reader"),
    ]
    shapes = {"row": np.array([-1, 1, 8], np.int64), "halves": np.array([-1, 2, 4, 1], np.int64)}
    model = graph(nodes, {**WEIGHTS, **shapes, "v": weights}, "z", rank)
    assert_same_answers(model, equalized(model)[0])
