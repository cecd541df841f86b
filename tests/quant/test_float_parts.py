"""Attention networks: what computes in float32, and what the int8 model is worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_graphs import Builder, between_convolutions, images, ranges_seen, run_exact, run_in, sqnr_db

from pipeline.quant import placement, qdq
from pipeline.quant.bias_correction import correct_biases
from pipeline.quant.float_parts import FloatParts, float_parts, has_gates
from pipeline.runtimes.base import Runtime

WIDTH, TOKENS = 16, 9


def linear(made: Builder, x: str, inputs: int, outputs: int) -> str:
    weights = made.constant(made.normal(inputs, outputs, spread=inputs**-0.5))
    return made.op("Add", made.constant(made.normal(outputs, spread=0.2)), made.op("MatMul", x, weights))


def norm(made: Builder, x: str) -> str:
    # One channel is larger than the others, as in trained networks.
    factors = 1 + 5 * (np.arange(WIDTH) == 3) + np.zeros(WIDTH)
    return made.op("LayerNormalization", x, made.constant(factors), made.constant(np.zeros(WIDTH)), axis=-1)


def attention(made: Builder, x: str) -> str:
    query, key, value = (linear(made, x, WIDTH, WIDTH) for _ in range(3))
    scores = made.op("MatMul", query, made.op("Transpose", key, perm=[0, 2, 1]))
    scores = made.op("Mul", scores, made.constant(0.1))
    return linear(made, made.op("MatMul", made.op("Softmax", scores, axis=-1), value), WIDTH, WIDTH)


def gelu(made: Builder, x: str) -> str:
    erf = made.op("Erf", made.op("Div", x, made.constant(2**0.5)))
    half = made.op("Mul", x, made.op("Add", erf, made.constant(1.0)))
    return made.op("Mul", half, made.constant(0.5))


def transformer(blocks: int = 2) -> onnx.ModelProto:
    made = Builder(7)
    weights = made.constant(made.normal(WIDTH, 3, 4, 4, spread=0.15))
    x = made.op("Conv", "x", weights, made.constant(np.zeros(WIDTH)), strides=[4, 4])
    x = made.op("Reshape", x, made.constant([0, WIDTH, TOKENS], np.int64))
    x = made.op("Transpose", x, perm=[0, 2, 1])
    x = made.op("Add", x, made.constant(made.normal(1, TOKENS, WIDTH)))
    for _ in range(blocks):
        x = made.op("Add", x, attention(made, norm(made, x)))
        x = made.op("Add", x, linear(made, gelu(made, linear(made, norm(made, x), WIDTH, 32)), 32, WIDTH))
    x = made.op("ReduceMean", norm(made, x), axes=[1], keepdims=0)
    return made.model(made.gemm(x, WIDTH, 5))


def int8_of(model: onnx.ModelProto) -> onnx.ModelProto:
    in_float = placement.classifier_inputs(model)
    return qdq.insert_qdq(model, ranges_seen(model, images(32)), per_channel=True, float_activations=in_float)


def test_float_parts_are_none_in_a_network_of_convolutions() -> None:
    model = between_convolutions(lambda made, x: made.op("Add", x, made.op("Relu", x)))
    assert not float_parts(model).nodes
    assert not float_parts(model).outputs


def test_float_parts_are_all_between_layers_with_weights_in_a_transformer() -> None:
    model = transformer()
    known = {tensor.name for tensor in model.graph.initializer}
    weighted = {n.name for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and n.input[1] in known}
    parts = float_parts(model)
    assert parts.nodes == {node.name for node in model.graph.node} - weighted
    assert parts.outputs == {model.graph.node[0].output[0]}  # the stream begins with it


def test_int8_model_of_a_transformer_quantizes_what_its_layers_read_and_nothing_else() -> None:
    model = transformer()
    int8 = int8_of(model)
    quantized = {node.input[0] for node in int8.graph.node if node.op_type == "QuantizeLinear"}
    known = {tensor.name for tensor in model.graph.initializer}
    read = {node.input[0] for node in model.graph.node if node.op_type in ("Conv", "MatMul") and node.input[1] in known}
    assert quantized == read
    assert qdq.count_quantized(int8) == {"weighted": 18, "quantized": 13}  # all but 4 products and the classifier


def test_int8_model_of_a_transformer_loses_little_beside_one_with_quantizers_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = transformer(), images(24, seed=8)
    expected = run_exact(model, batch)
    found = sqnr_db(expected, run_exact(int8_of(model), batch))
    for module in (placement, qdq):
        monkeypatch.setattr(module, "float_parts", lambda model, gates=False: FloatParts())
    assert found > sqnr_db(expected, run_exact(int8_of(model), batch)) + 6
    assert found > 25


@pytest.mark.parametrize("runtime", list(Runtime))
def test_int8_model_of_a_transformer_is_the_same_in_every_runtime(runtime: Runtime, tmp_path: Path) -> None:
    pytest.importorskip(runtime.value, reason=f"needs {runtime.value}")
    int8, batch = int8_of(transformer()), images(8, seed=8)
    onnx.save(int8, tmp_path / "int8.onnx")
    assert sqnr_db(run_exact(int8, batch), run_in(runtime, tmp_path / "int8.onnx", batch)) > 30


def test_a_convolution_that_reads_a_stream_is_int8_and_the_stream_float32() -> None:
    """As in ConvNeXt: a depthwise convolution reads what a residual addition reads too."""
    made = Builder(1)
    stem = made.op("LayerNormalization", made.conv("x", 3, 8), made.constant(np.ones(12)), axis=-1)
    branch = made.conv(stem, 1, 8, group=8)
    normed = made.op("LayerNormalization", branch, made.constant(np.ones(12)), axis=-1)
    total = made.op("Add", stem, made.conv(normed, 8, 8, 1))
    model = made.model(made.gemm(made.pooled(total), 8, 5))
    int8 = int8_of(model)
    makers = {name: node for node in int8.graph.node for name in node.output}
    nodes = {node.name: node for node in int8.graph.node}
    assert nodes["add0"].input[0] == stem
    assert makers[nodes["conv1"].input[0]].op_type == "DequantizeLinear"
    assert nodes["layernormalization1"].input[0] == branch  # written in float32
    # The branch's end keeps its quantizer: without it ONNX Runtime computes the convolution in float32.
    assert makers[nodes["add0"].input[1]].op_type == "DequantizeLinear"


def gated() -> onnx.ModelProto:
    """Convolutions with SiLU and squeeze-and-excitation, and one with a ReLU."""
    made = Builder(3)
    x = made.op("Relu", made.conv("x", 3, 8))
    x = made.conv(x, 8, 8)
    x = made.op("Mul", x, made.op("Sigmoid", x))
    gate = made.op("Sigmoid", made.conv(made.op("GlobalAveragePool", x), 8, 8, 1))
    x = made.op("Relu", made.conv(made.op("Mul", x, gate), 8, 8))
    return made.model(made.gemm(made.pooled(x), 8, 5))


def test_gates_in_float_leave_quantizers_only_before_layers() -> None:
    model = gated()
    assert has_gates(model)
    assert not has_gates(between_convolutions(lambda made, x: made.op("Relu", x)))
    ranges = ranges_seen(model, images())
    opened = qdq.insert_qdq(model, ranges, per_channel=True, gates_in_float=True)
    makers = {name: node for node in opened.graph.node for name in node.output}
    for kind in ("Sigmoid", "Mul", "GlobalAveragePool"):
        for node in (node for node in opened.graph.node if node.op_type == kind and node.name != "globalaveragepool1"):
            assert {makers[name].op_type for name in node.input} <= {"Conv", "Mul", "Sigmoid"}
    convolutions = [node for node in opened.graph.node if node.op_type == "Conv"]
    assert all(makers[node.input[0]].op_type == "DequantizeLinear" for node in convolutions)
    assert qdq.count_quantized(opened) == {"weighted": 5, "quantized": 5}
    batch = images(16, seed=8)
    expected = run_exact(model, batch)
    closed = qdq.insert_qdq(model, ranges, per_channel=True)
    assert sqnr_db(expected, run_exact(opened, batch)) > sqnr_db(expected, run_exact(closed, batch))


def test_gates_in_float_take_the_quantizer_between_a_convolution_and_a_gelu() -> None:
    """As in ConvNeXt."""
    model = between_convolutions(gelu)
    assert has_gates(model)
    for in_float, made_by in ((False, "DequantizeLinear"), (True, "Conv")):
        int8 = qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True, gates_in_float=in_float)
        makers = {name: node for node in int8.graph.node for name in node.output}
        divided = next(node for node in int8.graph.node if node.op_type == "Div")
        assert makers[divided.input[0]].op_type == made_by
        multiplied = next(node for node in int8.graph.node if node.op_type == "Mul")
        assert makers[multiplied.input[0]].op_type == made_by
        convolutions = [node for node in int8.graph.node if node.op_type == "Conv"]
        assert {makers[node.input[0]].op_type for node in convolutions} == {"DequantizeLinear"}


def test_gates_at_the_end_of_a_network_make_no_difference() -> None:
    made = Builder(3)
    scores = made.op("Sigmoid", made.gemm(made.pooled(made.op("Relu", made.conv("x", 3, 8))), 8, 5))
    assert not has_gates(made.model(scores))


def test_correct_biases_corrects_what_is_added_to_a_matmul_and_leaves_it_to_others_as_it_was() -> None:
    made = Builder(2)
    rows = made.op("Reshape", "x", made.constant([0, 36, 12], np.int64))
    bias = made.constant(made.normal(6))
    first = made.op("Add", made.op("MatMul", rows, made.constant(made.normal(12, 6))), bias)
    second = made.op(
        "Add",
        made.op(
            "MatMul", made.op("LayerNormalization", first, made.constant(np.ones(6))), made.constant(made.normal(6, 6))
        ),
        bias,
    )
    model = made.model(made.gemm(made.op("ReduceMean", second, axes=[1], keepdims=0), 6, 5))
    batch = np.abs(images(16)) + 1
    means = {rows: batch.reshape(-1, 12).mean(axis=0, dtype=np.float64)}
    int8 = qdq.insert_qdq(model, ranges_seen(model, batch), per_channel=True)
    (weights,) = [t for t in int8.graph.initializer if t.name == f"{model.graph.node[1].input[1]}_quantized"]
    coarse = np.clip(np.rint(numpy_helper.to_array(weights) / 16.0) * 16, -127, 127).astype(np.int8)
    weights.CopyFrom(numpy_helper.from_array(coarse, weights.name))

    def mean_of(each: onnx.ModelProto) -> np.ndarray:
        probed = onnx.ModelProto()
        probed.CopyFrom(each)
        del probed.graph.output[:]
        probed.graph.output.append(onnx.helper.make_tensor_value_info(first, onnx.TensorProto.FLOAT, None))
        mean: np.ndarray = run_exact(probed, batch).mean(axis=(0, 1))
        return mean

    before = np.abs(mean_of(int8) - mean_of(model)).max()
    changed = correct_biases(int8, model, means)
    assert list(changed) == ["matmul0"]
    assert changed["matmul0"] == pytest.approx(before, rel=0.1)
    assert np.abs(mean_of(int8) - mean_of(model)).max() < 0.05 * before
    nodes = {node.name: node for node in int8.graph.node}
    assert bias not in nodes["add0"].input
    assert nodes["add1"].input[1] == f"{bias}_DequantizeLinear_Output"


def generalized_mean(exponent: float = 3.0) -> onnx.ModelProto:
    """Convolutions and the mean of x^p over the image, to the power 1/p; some channels are small."""
    made = Builder(5)
    x = made.op("Relu", made.conv(made.op("Relu", made.conv("x", 3, 8)), 8, 8))
    x = made.op("Mul", x, made.constant(np.geomspace(0.05, 1, 8).reshape(8, 1, 1)))
    x = made.op("Pow", made.clip(x, 1e-6, None), made.constant(exponent))
    x = made.op("Pow", made.op("GlobalAveragePool", x), made.constant([1 / exponent]))
    return made.model(made.gemm(made.op("Flatten", x), 8, 5))


def test_float_parts_are_what_lies_between_a_power_and_its_root() -> None:
    assert float_parts(generalized_mean()) == FloatParts(frozenset({"globalaveragepool0"}))
    quantized = {node.input[0] for node in int8_of(generalized_mean()).graph.node if node.op_type == "QuantizeLinear"}
    powers = {node.name: node for node in generalized_mean().graph.node if node.op_type == "Pow"}
    assert powers["pow0"].input[0] in quantized  # what the layers before it write
    assert not quantized.intersection({powers["pow0"].output[0], powers["pow1"].input[0], powers["pow1"].output[0]})


def test_float_parts_are_none_before_a_square_or_a_root_right_behind_a_layer() -> None:
    square = between_convolutions(
        lambda made, x: made.op("Pow", made.op("MaxPool", x, kernel_shape=[1, 1]), made.constant(2.0))
    )
    root = between_convolutions(lambda made, x: made.op("Pow", made.op("Relu", x), made.constant(0.5)))
    assert float_parts(square) == float_parts(root) == FloatParts()


@pytest.mark.parametrize("runtime", list(Runtime))
def test_int8_model_of_a_generalized_mean_keeps_its_small_channels(runtime: Runtime, tmp_path: Path) -> None:
    """With quantizers around the mean it has 16 dB."""
    pytest.importorskip(runtime.value, reason=f"needs {runtime.value}")
    model, batch = generalized_mean(), images(24, seed=8)
    onnx.save(int8_of(model), tmp_path / "int8.onnx")
    assert sqnr_db(run_exact(model, batch), run_in(runtime, tmp_path / "int8.onnx", batch)) > 30


def group_norm(made: Builder, x: str) -> str:
    """As the loaded form of a GroupNormalization of 2 groups of 4 channels."""
    groups = made.op("Reshape", x, made.constant([0, 2, -1], np.int64))
    normal = made.op("InstanceNormalization", groups, made.constant(np.ones(2)), made.constant(np.zeros(2)))
    channels = made.op("Reshape", normal, made.constant([0, 8, -1], np.int64))
    scaled = made.op("Mul", channels, made.constant(made.normal(8, 1)))
    moved = made.op("Add", scaled, made.constant(made.normal(8, 1)))
    return made.op("Reshape", moved, made.op("Shape", x))


def softplus(made: Builder, x: str) -> str:
    """Of values up to about 10, whose exponentials reach 20,000."""
    x = made.op("Mul", x, made.constant(3.0))
    return made.op("Log", made.op("Add", made.constant(1.0), made.op("Exp", x)))


def test_float_parts_are_scale_and_bias_behind_an_instance_norm() -> None:
    model = between_convolutions(group_norm)
    assert float_parts(model).nodes == {"reshape1", "mul0", "add0"}
    sources = placement.range_sources(model)
    made = {node.name: node.output[0] for node in model.graph.node}
    assert not {made[name] for name in ("instancenormalization0", "reshape1", "mul0")} & sources.keys()


@pytest.mark.parametrize(("part", "least_db"), [(group_norm, 47), (softplus, 40)])
@pytest.mark.parametrize("runtime", Runtime)
def test_int8_model_of_norms_and_exponentials_rounds_them_once(
    runtime: Runtime, tmp_path: Path, part: Callable[[Builder, str], str], least_db: float
) -> None:
    model = between_convolutions(part)
    onnx.save(int8_of(model), tmp_path / "int8.onnx")
    assert sqnr_db(run_exact(model, images()), run_in(runtime, tmp_path / "int8.onnx", images())) > least_db
