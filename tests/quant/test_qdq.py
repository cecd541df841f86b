"""qdq.py on a small residual network: where quantizers stand, and that both runtimes compute the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import small_graphs as small
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pipeline.errors import ConfigError, DataError
from pipeline.models import exporter
from pipeline.onnx_models import classifier
from pipeline.quant import placement, qdq, quantizer
from pipeline.quant.neighbours import largest_sums, weight_pairs
from pipeline.quant.qmath import Range
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import installed_runtimes, open_backend, place

Float32 = npt.NDArray[np.float32]

CONVS = (
    "/conv1/Conv",
    "/layer1/layer1.0/conv1/Conv",
    "/layer1/layer1.0/conv2/Conv",
    "/layer2/layer2.0/downsample/downsample.0/Conv",
    "/layer2/layer2.0/conv1/Conv",
    "/layer2/layer2.0/conv2/Conv",
)


@pytest.fixture(scope="module")
def ranges(tiny_model: onnx.ModelProto, batch_nchw: Float32) -> dict[str, Range]:
    return small.ranges_seen(tiny_model, batch_nchw)


@pytest.fixture(scope="module")
def int8(tiny_model: onnx.ModelProto, ranges: dict[str, Range]) -> onnx.ModelProto:
    return qdq.insert_qdq(tiny_model, ranges, per_channel=True)


class Graph:
    """A model's graph, to be asked who makes and who reads what."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = {node.name: node for node in model.graph.node}
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def of_type(self, *kinds: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes.values() if node.op_type in kinds]

    def is_dequantized(self, name: str) -> bool:
        return name in self.makers and self.makers[name].op_type == "DequantizeLinear"

    def readers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes.values() if name in node.input]

    def parameters(self, node: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray]:
        """Return scale and zero point of a quantizer or dequantizer."""
        return self.constants[node.input[1]], self.constants[node.input[2]]


def test_observed_tensors_are_the_input_and_what_is_quantized_apart_from_folded_relus(
    tiny_model: onnx.ModelProto,
) -> None:
    names = placement.observed_tensors(tiny_model)
    makers = {name: node.op_type for node in tiny_model.graph.node for name in node.output}
    assert names[0] == "input"
    # A ReLU stands for its convolution; the pooling after the stem and Flatten take the scale of their input.
    kinds = [makers[name] for name in names[1:]]
    assert kinds.count("Relu") == 5
    assert kinds.count("Conv") == 3
    assert kinds.count("Add") == 0
    assert kinds.count("GlobalAveragePool") == 1
    assert len(kinds) == 9
    assert tiny_model.graph.output[0].name not in names


def test_range_sources_follow_relus_back_and_pooling_forward(tiny_model: onnx.ModelProto) -> None:
    sources = placement.range_sources(tiny_model)
    nodes = {node.name: node for node in tiny_model.graph.node}
    stem, relu = nodes["/conv1/Conv"].output[0], nodes["/relu/Relu"].output[0]
    assert sources[stem] == relu
    assert sources[nodes["/maxpool/MaxPool"].output[0]] == relu
    assert sources[nodes["/layer1/layer1.0/conv2/Conv"].output[0]] == nodes["/layer1/layer1.0/conv2/Conv"].output[0]
    assert sources[nodes["/Flatten"].output[0]] == nodes["/avgpool/GlobalAveragePool"].output[0]


def test_insert_qdq_quantizes_both_sides_of_every_layer(int8: onnx.ModelProto) -> None:
    graph = Graph(int8)
    assert qdq.count_quantized(int8) == {"weighted": 7, "quantized": 7}
    assert len(graph.of_type("Conv")) == 6
    assert len(graph.of_type("Gemm")) == 1
    for node in graph.of_type("Conv", "Gemm", "Add", "GlobalAveragePool", "MaxPool"):
        assert all(graph.is_dequantized(name) for name in node.input), node.name
    for node in graph.of_type("Conv", "Add", "GlobalAveragePool", "MaxPool"):
        assert [reader.op_type for reader in graph.readers(node.output[0])] == ["QuantizeLinear"], node.name
    for node in graph.of_type("QuantizeLinear"):
        _, zero_point = graph.parameters(node)
        assert zero_point.dtype == np.uint8


def test_insert_qdq_folds_every_relu_into_the_quantizer_before_it(int8: onnx.ModelProto) -> None:
    graph = Graph(int8)
    assert graph.of_type("Relu") == []
    quantizer = graph.readers(graph.nodes["/conv1/Conv"].output[0])[0]
    assert graph.parameters(quantizer)[1] == 0  # nothing below zero passes


def test_insert_qdq_leaves_the_classifiers_output_in_float(int8: onnx.ModelProto) -> None:
    graph = Graph(int8)
    output = int8.graph.output[0]
    assert output.type.tensor_type.elem_type == TensorProto.FLOAT
    assert graph.makers[output.name].op_type == "Gemm"


def weight_of(graph: Graph, node: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    dequantizer = graph.makers[node.input[1]]
    return (graph.constants[dequantizer.input[0]], *graph.parameters(dequantizer))


def test_insert_qdq_makes_weights_int8_symmetric_when_per_channel(
    int8: onnx.ModelProto, tiny_model: onnx.ModelProto
) -> None:
    graph, before = Graph(int8), Graph(tiny_model)
    for name in (*CONVS, "/fc/Gemm"):
        quantized, scale, zero_point = weight_of(graph, graph.nodes[name])
        weight = before.constants[before.nodes[name].input[1]]
        assert quantized.dtype == np.int8
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        assert scale.shape == (weight.shape[0],)
        # The largest weight of a channel is at most 127 steps, and two neighbours of one sign are at most 128.
        rows, pairs = weight.reshape(len(weight), -1), weight_pairs(weight.shape)
        wanted = np.maximum(np.abs(rows).max(axis=1) / 127, largest_sums(rows, pairs) / 128)
        np.testing.assert_allclose(scale, wanted, rtol=1e-5)
        steps = weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
        assert np.abs(steps - quantized).max() <= 1  # the nearest, or the one before it where a pair would be 129
        assert (np.abs(steps - quantized) <= 0.5 + 1e-4).mean() > 0.98
        assert largest_sums(quantized.reshape(len(rows), -1), pairs).max() <= 128
        assert np.abs(quantized.astype(int)).max() <= 127


def test_insert_qdq_gives_one_scale_a_tensor_when_not_per_channel(
    tiny_model: onnx.ModelProto, ranges: dict[str, Range]
) -> None:
    graph, before = Graph(qdq.insert_qdq(tiny_model, ranges, per_channel=False)), Graph(tiny_model)
    for name in (*CONVS, "/fc/Gemm"):
        quantized, scale, zero_point = weight_of(graph, graph.nodes[name])
        assert quantized.dtype == np.int8
        assert scale.shape == zero_point.shape == ()
        assert zero_point == 0
        weight = before.constants[before.nodes[name].input[1]]
        sums = largest_sums(weight.reshape(len(weight), -1), weight_pairs(weight.shape)).max()
        assert scale == pytest.approx(max(np.abs(weight).max() / 127, sums / 128), rel=1e-5)


def test_insert_qdq_takes_activation_scales_from_the_ranges(int8: onnx.ModelProto, ranges: dict[str, Range]) -> None:
    graph = Graph(int8)
    quantizer = next(node for node in graph.readers("input") if node.op_type == "QuantizeLinear")
    scale, zero_point = graph.parameters(quantizer)
    covered = ranges["input"]
    assert scale == pytest.approx((covered.high - covered.low) / 255, rel=1e-5)
    assert int(zero_point) == round(-covered.low / float(scale))


def test_insert_qdq_does_not_change_its_argument(tiny_model: onnx.ModelProto, ranges: dict[str, Range]) -> None:
    before = tiny_model.SerializeToString(deterministic=True)
    qdq.insert_qdq(tiny_model, ranges, per_channel=True)
    assert tiny_model.SerializeToString(deterministic=True) == before


def test_insert_qdq_raises_when_a_tensor_has_no_range(tiny_model: onnx.ModelProto) -> None:
    with pytest.raises(DataError) as caught:
        qdq.insert_qdq(tiny_model, {"input": Range(-1, 1)}, per_channel=True)
    assert str(caught.value) == ("calibration has no range for 9 tensors (first: /relu/Relu_output_0); build again")


@pytest.mark.parametrize("layer", ["/conv1/Conv", "/layer2/layer2.0/conv2/Conv", "/fc/Gemm"])
def test_insert_qdq_leaves_a_layer_in_float_when_it_is_named(
    tiny_model: onnx.ModelProto, ranges: dict[str, Range], batch_nchw: Float32, layer: str
) -> None:
    model = qdq.insert_qdq(tiny_model, ranges, per_channel=True, float_layers=[layer])
    assert qdq.count_quantized(model) == {"weighted": 7, "quantized": 6}
    graph, before = Graph(model), Graph(tiny_model)
    weight = graph.nodes[layer].input[1]
    np.testing.assert_array_equal(graph.constants[weight], before.constants[before.nodes[layer].input[1]])
    assert agreement(classifier.run(model, batch_nchw), tiny_model, batch_nchw) >= 22


def agreement(outputs: Float32, float32: onnx.ModelProto, batch_nchw: Float32) -> int:
    expected = classifier.run(float32, batch_nchw)
    return int((outputs.argmax(axis=1) == expected.argmax(axis=1)).sum())


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("runtime", [Runtime.ONNXRUNTIME, pytest.param(Runtime.OPENVINO, marks=pytest.mark.openvino)])
def test_int8_agrees_with_float32_in_every_runtime(
    tiny_model: onnx.ModelProto,
    ranges: dict[str, Range],
    batch_nchw: Float32,
    tmp_path: Path,
    runtime: Runtime,
    per_channel: bool,
) -> None:
    if runtime is Runtime.OPENVINO:
        pytest.importorskip("openvino")
    onnx.save(qdq.insert_qdq(tiny_model, ranges, per_channel=per_channel), tmp_path / "int8.onnx")
    with open_backend(runtime, tmp_path / "int8.onnx", batch=24, placement=place(1, 1)) as backend:
        outputs = backend.infer(batch_nchw)
    assert agreement(outputs, tiny_model, batch_nchw) >= 22
    expected = classifier.run(tiny_model, batch_nchw)
    assert 0 < classifier.relative_error(expected, outputs) < 0.1


def test_insert_qdq_survives_channels_of_zeros_and_tensors_of_zeros(
    tiny_model: onnx.ModelProto, batch_nchw: Float32
) -> None:
    """Trained networks have dead channels: their weights are zero but for the bias."""
    model = onnx.ModelProto()
    model.CopyFrom(tiny_model)
    nodes = {node.name: node for node in model.graph.node}
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if tensor.name == nodes["/layer1/layer1.0/conv1/Conv"].input[1]:
            values[0], values[1] = 0, 1e-20
        elif tensor.name == nodes["/layer1/layer1.0/conv1/Conv"].input[2]:
            values[:] = -1e3  # so that the ReLU gives nothing at all
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    ranges = small.ranges_seen(model, batch_nchw)
    assert Range(0.0, 0.0) in ranges.values()
    outputs = classifier.run(qdq.insert_qdq(model, ranges, per_channel=True), batch_nchw)
    assert agreement(outputs, model, batch_nchw) >= 22
    # A range as narrow as the bin of zero, which a percentile can leave, is no range either.
    narrow = {name: Range(0.0, 2.3e-41) if found == Range(0.0, 0.0) else found for name, found in ranges.items()}
    outputs = classifier.run(qdq.insert_qdq(model, narrow, per_channel=True), batch_nchw)
    assert agreement(outputs, model, batch_nchw) >= 22


def make_model(nodes: Sequence[onnx.NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "made by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", 4))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_shape_arithmetic_is_not_quantized_when_the_model_computes_shapes(batch_nchw: Float32) -> None:
    """As in a reshape to [2 * batch, -1]: Unsqueeze, Mul and Concat work on integers there."""
    rng = np.random.default_rng(1)
    model = make_model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
            helper.make_node("Relu", ["c"], ["r"], "relu"),
            helper.make_node("GlobalAveragePool", ["r"], ["g"], "pool"),
            helper.make_node("Shape", ["g"], ["s"], "shape"),
            helper.make_node("Gather", ["s", "first"], ["n"], "gather"),
            helper.make_node("Unsqueeze", ["n", "axes"], ["u"], "unsqueeze"),
            helper.make_node("Mul", ["u", "two"], ["m"], "mul"),
            helper.make_node("Concat", ["m", "rest"], ["to"], "concat", axis=0),
            helper.make_node("Reshape", ["g", "to"], ["halves"], "split"),
            helper.make_node("Reshape", ["halves", "back"], ["f"], "join"),
            helper.make_node("Gemm", ["f", "fw"], ["y"], "gemm"),
        ],
        {
            "w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
            "fw": rng.normal(size=(4, 4)).astype(np.float32),
            "first": np.array(0),
            "axes": np.array([0]),
            "two": np.array([2]),
            "rest": np.array([-1]),
            "back": np.array([-1, 4]),
        },
    )
    images = np.ascontiguousarray(batch_nchw[:4, :, :8, :8])
    assert placement.observed_tensors(model) == ["x", "r", "g"]
    quantized = qdq.insert_qdq(model, small.ranges_seen(model, images), per_channel=True)
    assert qdq.count_quantized(quantized) == {"weighted": 2, "quantized": 2}
    error = classifier.relative_error(classifier.run(model, images), classifier.run(quantized, images))
    assert 0 < error < 0.1


def unit(inputs: int, outputs: int, activation: nn.Module, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, groups=groups)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), activation)


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], 1)


class Shuffle(nn.Module):
    """Half of the channels go through a convolution; then the halves are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        joined = torch.cat([first, self.conv(second)], 1)
        batch, channels, height, width = joined.shape
        return joined.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


class Mixer(nn.Module):
    """LayerNorm, GELU and a residual addition over channels, on windows that join the batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        windows = x.permute(0, 2, 3, 1).reshape(batch * 4, height * width // 4, channels)
        windows = windows + F.gelu(self.fc(self.norm(windows)))
        return windows.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


# name -> network, its weighted operators
FAMILIES: dict[str, tuple[nn.Module, int]] = {
    "VGG": (
        nn.Sequential(
            unit(3, 8, nn.ReLU()), nn.MaxPool2d(8), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), *head(16)[2:]
        ),
        3,
    ),
    "MobileNet v2": (nn.Sequential(unit(3, 8, nn.ReLU6()), unit(8, 8, nn.ReLU6(), groups=8), *head(8)), 3),
    "MobileNet v3": (nn.Sequential(unit(3, 8, nn.Hardswish()), SqueezeExcite(), *head(8)), 4),
    "EfficientNet": (nn.Sequential(unit(3, 8, nn.SiLU()), SqueezeExcite(), unit(8, 8, nn.SiLU()), *head(8)), 5),
    "Darknet": (nn.Sequential(unit(3, 8, nn.LeakyReLU()), unit(8, 8, nn.PReLU()), *head(8)), 3),
    "DenseNet": (
        nn.Sequential(unit(3, 8, nn.ReLU()), Dense(), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2), *head(16)),
        5,  # with two norms that no convolution takes in
    ),
    "ShuffleNet": (nn.Sequential(unit(3, 8, nn.ReLU()), Shuffle(), *head(8)), 3),
    "SqueezeNet": (nn.Sequential(unit(3, 8, nn.ReLU()), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 2),
    "MLP-Mixer": (nn.Sequential(unit(3, 8, nn.ReLU()), Mixer(), *head(8)), 3),
    "upsampling": (nn.Sequential(unit(3, 8, nn.ReLU()), nn.Upsample(scale_factor=2), nn.MaxPool2d(3, 2), *head(8)), 2),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_insert_qdq_quantizes_every_layer_of_other_families(name: str, batch_nchw: Float32, tmp_path: Path) -> None:
    """Float operators (Sigmoid, LayerNormalization, Slice, ...) between quantized ones need ranges of their own."""
    network, weighted = FAMILIES[name]
    torch.manual_seed(6)
    with torch.no_grad():
        network.train()(torch.from_numpy(batch_nchw))  # so that norms know their inputs
    onnx.save(exporter.to_onnx(network, (3, 32, 32)), tmp_path / "m.onnx")
    model = classifier.load(tmp_path / "m.onnx", (3, 32, 32))
    int8 = qdq.insert_qdq(model, small.ranges_seen(model, batch_nchw), per_channel=True)
    assert qdq.count_quantized(int8) == {"weighted": weighted, "quantized": weighted}
    expected = classifier.run(model, batch_nchw)
    assert 0 < classifier.relative_error(expected, classifier.run(int8, batch_nchw)) < 0.05


class PreActivation(nn.Module):
    """The inner block of an iResNet: nothing but a convolution before the addition, a norm of its own before that."""

    def __init__(self) -> None:
        super().__init__()
        self.bn0, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.conv(torch.relu(self.bn0(x)))
        return found


@pytest.fixture(scope="module")
def norm_model(batch_nchw: Float32) -> onnx.ModelProto:
    torch.manual_seed(9)
    network = nn.Sequential(unit(3, 8, nn.ReLU()), PreActivation(), nn.BatchNorm2d(8), nn.ReLU(), *head(8))
    with torch.no_grad():
        network.train()(torch.from_numpy(batch_nchw))
        for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, -2, 2)  # channels far apart, which one scale for all would not stand
            nn.init.uniform_(norm.bias, -1, 1)
    return exporter.to_onnx(network, (3, 32, 32))


def operators(model: onnx.ModelProto, kind: str) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type == kind]


def test_insert_qdq_computes_norms_that_stand_alone_in_int8(norm_model: onnx.ModelProto, batch_nchw: Float32) -> None:
    norms = operators(norm_model, "BatchNormalization")
    assert len(norms) == 2
    ranges = small.ranges_seen(norm_model, batch_nchw)
    int8 = qdq.insert_qdq(norm_model, ranges, per_channel=True)
    in_float = qdq.insert_qdq(norm_model, ranges, per_channel=True, float_layers=norms)
    assert (operators(int8, "BatchNormalization"), operators(in_float, "BatchNormalization")) == ([], norms)
    assert qdq.count_quantized(int8) == {"weighted": 5, "quantized": 5}
    graph = Graph(int8)
    for name in norms:
        assert [node.op_type for node in graph.readers(graph.nodes[name].output[0])] == ["QuantizeLinear"]
    expected = classifier.run(norm_model, batch_nchw)
    errors = [classifier.relative_error(expected, classifier.run(each, batch_nchw)) for each in (int8, in_float)]
    assert 0 < errors[0] < 1.2 * errors[1]


def test_insert_qdq_leaves_norms_in_float_when_weights_share_a_scale(
    norm_model: onnx.ModelProto, batch_nchw: Float32
) -> None:
    int8 = qdq.insert_qdq(norm_model, small.ranges_seen(norm_model, batch_nchw), per_channel=False)
    assert len(operators(int8, "BatchNormalization")) == 2


def test_find_layers_gives_names_for_numbers_and_names(tiny_model: onnx.ModelProto) -> None:
    assert qdq.find_layers(tiny_model, [], []) == frozenset()
    assert qdq.find_layers(tiny_model, [0, 5], []) == {CONVS[0], CONVS[5]}
    assert qdq.find_layers(tiny_model, [], [0, 6]) == {CONVS[0], "/fc/Gemm"}
    assert qdq.find_layers(tiny_model, [CONVS[2]], ["/fc/Gemm", "/maxpool/MaxPool"]) == {
        CONVS[2],
        "/fc/Gemm",
        "/maxpool/MaxPool",
    }


def test_find_layers_gives_what_a_pattern_fits(tiny_model: onnx.ModelProto) -> None:
    names = {node.name for node in tiny_model.graph.node}
    assert qdq.find_layers(tiny_model, ["*"], []) == set(CONVS)
    assert qdq.find_layers(tiny_model, [], ["*"]) == names
    assert qdq.find_layers(tiny_model, [], ["/fc/*"]) == {name for name in names if name.startswith("/fc/")}


@pytest.mark.parametrize(
    ("convolutions", "layers", "message"),
    [
        ([6], [], "skip_conv_layers: the model has no layer 6; numbers go from 0 to 5"),
        ([], [7], "exclude_layers: the model has no layer 7; numbers go from 0 to 6"),
        ([], ["/fc/Gem"], "exclude_layers: the model has no layer '/fc/Gem'; did you mean '/fc/Gemm'?"),
        ([], ["/fx/*"], "exclude_layers: the model has no layer '/fx/*'; numbers go from 0 to 6"),
        (["Q"], [], "skip_conv_layers: the model has no layer 'Q'; numbers go from 0 to 5"),
    ],
)
def test_find_layers_names_the_key_when_there_is_no_such_layer(
    tiny_model: onnx.ModelProto, convolutions: list[int | str], layers: list[int | str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        qdq.find_layers(tiny_model, convolutions, layers)
    assert str(caught.value) == f"backend.quantize.{message}"


@pytest.mark.parametrize("runtime", installed_runtimes())
def test_insert_qdq_leaves_a_product_by_a_stack_of_matrices_in_float(runtime: Runtime, tmp_path: Path) -> None:
    def part(made: small.Builder, x: str) -> str:
        stack = made.constant(made.normal(8, small.SIDE, small.SIDE, spread=0.3))
        return made.op("MatMul", made.op("Relu", x), stack)

    model, batch_nchw = small.between_convolutions(part), small.images()
    quantized = qdq.insert_qdq(model, small.ranges_seen(model, batch_nchw), per_channel=True)
    product = next(node for node in quantized.graph.node if node.op_type == "MatMul")
    assert product.input[1] in {tensor.name for tensor in model.graph.initializer}
    onnx.save(quantized, tmp_path / "m.onnx")
    expected = small.run_exact(model, batch_nchw)
    assert small.sqnr_db(expected, small.run_in(runtime, tmp_path / "m.onnx", batch_nchw)) > 25


@pytest.mark.parametrize("runtime", installed_runtimes())
@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_insert_qdq_gives_the_same_in_every_runtime_when_matrix_products_have_no_bias(
    runtime: Runtime, kind: str, tmp_path: Path
) -> None:
    made = small.Builder()
    x = made.pooled(made.op("Relu", made.conv("x", 3, 32)))
    for _ in range(2):
        x = made.op(kind, x, made.constant(made.normal(32, 32, spread=0.2)))
    onnx.save(made.model(made.gemm(x, 32, 5)), tmp_path / "float32.onnx")
    model, batch_nchw = classifier.load(tmp_path / "float32.onnx", (3, small.SIDE, small.SIDE)), small.images()
    quantized = qdq.insert_qdq(model, small.ranges_seen(model, batch_nchw), per_channel=True)
    onnx.save(quantized, tmp_path / "m.onnx")
    exact = small.run_exact(quantized, batch_nchw)
    assert small.sqnr_db(exact, small.run_in(runtime, tmp_path / "m.onnx", batch_nchw)) > 40


@pytest.mark.parametrize("per_channel", [True, False])
def test_insert_qdq_gives_the_same_model_when_the_quantizer_is_spared_the_weights(
    monkeypatch: pytest.MonkeyPatch, per_channel: bool
) -> None:
    """Convolutions, grouped ones, a Gemm and a MatMul, one of each in float."""
    made = small.Builder()
    x = made.op("Relu", made.conv("x", 3, 8))
    x = made.op("Relu", made.conv(x, 2, 8, group=4))
    x = made.op("MatMul", made.op("Relu", made.gemm(made.pooled(x), 8, 16)), made.constant(made.normal(16, 8)))
    model = made.model(made.gemm(made.op("Relu", x), 8, 5))
    ranges = small.ranges_seen(model, small.images())
    for float_layers in ((), ("conv1", "gemm0"), ("matmul0",)):
        found = []
        for large in (0, 1 << 30):
            monkeypatch.setattr(quantizer, "_LARGE", large)
            int8 = qdq.insert_qdq(model, ranges, per_channel=per_channel, float_layers=float_layers)
            tensors = {each.name: numpy_helper.to_array(each) for each in int8.graph.initializer}
            found.append((int8.graph.node, tensors))
        (nodes, spared), (expected_nodes, expected) = found
        assert list(nodes) == list(expected_nodes)
        assert list(spared) == list(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(spared[name], values, err_msg=name)
