"""float_form.py: what ONNX Runtime computes in float32 gets no quantizers; answers are those of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_graphs import Builder, Float32, images, ranges_seen, run_exact, run_in, sqnr_db

from pipeline.quant import placement, qdq
from pipeline.quant.gate_scaling import gated_tensors, scale_gates
from pipeline.runtimes import ort
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.float_form import CLIPPING, use_float_form


def gated() -> onnx.ModelProto:
    """Return two convolutions in int8, then a depthwise one and another, each behind a SiLU."""
    made = Builder(3)
    x = made.op("Relu", made.conv("x", 3, 8))
    x = made.conv(x, 8, 8)
    x = made.op("Mul", x, made.op("Sigmoid", x))
    x = made.conv(x, 1, 8, group=8)
    x = made.op("Mul", x, made.op("Sigmoid", x))
    x = made.op("Relu", made.conv(x, 8, 8))
    return made.model(made.gemm(made.pooled(x), 8, 5))


def int8_of(model: onnx.ModelProto) -> onnx.ModelProto:
    return qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True, gates_in_float=True)


def changed(model: onnx.ModelProto) -> onnx.ModelProto:
    found = onnx.ModelProto()
    found.CopyFrom(model)
    assert use_float_form(found)
    onnx.checker.check_model(found)
    return found


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_convolutions_before_gates_get_constants_and_quantizers_between_them_go() -> None:
    int8 = int8_of(gated())
    found = changed(int8)
    makers = {name: node for node in found.graph.node for name in node.output}
    nodes = {node.name: node for node in found.graph.node}
    constants = {tensor.name for tensor in found.graph.initializer}
    assert all(set(nodes[name].input[1:]) <= constants for name in ("conv1", "conv2"))
    assert makers[nodes["conv2"].input[0]].op_type == "Mul"  # between two convolutions in float32
    for name in ("conv0", "conv3"):  # their outputs are quantized, so they are int8
        assert {makers[each].op_type for each in nodes[name].input} == {"DequantizeLinear"}
    assert operators(found).count("QuantizeLinear") == operators(int8).count("QuantizeLinear") - 1


@pytest.mark.parametrize(("groups", "stays"), [(8, False), (1, True)])
def test_a_convolution_that_makes_little_of_what_is_quantized_for_it_is_float32(groups: int, stays: bool) -> None:
    """A depthwise one behind a SiLU has 9 products a value, an ordinary one 72; both write quantized values."""
    made = Builder(6)
    x = made.conv("x", 3, 8)
    x = made.op("Mul", x, made.op("Sigmoid", x))
    x = made.op("Relu", made.conv(x, 8 // groups, 8, group=groups))
    x = made.op("Relu", made.conv(x, 8, 8))
    float32 = made.model(made.gemm(made.pooled(x), 8, 5))
    int8, batch = int8_of(float32), images(16, seed=8)
    found = changed(int8)
    constants = {tensor.name for tensor in found.graph.initializer}
    behind, last = (next(node for node in found.graph.node if node.name == name) for name in ("conv1", "conv2"))
    assert (behind.input[1] not in constants) is stays
    assert last.input[1] not in constants  # what is quantized for it comes of an int8 layer in the file
    assert operators(found).count("QuantizeLinear") == operators(int8).count("QuantizeLinear") - (not stays)
    exact = run_exact(float32, batch)
    assert sqnr_db(exact, run_exact(found, batch)) >= sqnr_db(exact, run_exact(int8, batch)) - 0.5


def test_a_convolution_stays_in_int8_when_another_in_int8_reads_the_same_quantizer() -> None:
    made = Builder(6)
    x = made.conv("x", 3, 8)
    x = made.op("Mul", x, made.op("Sigmoid", x))
    depthwise, ordinary = made.conv(x, 1, 8, group=8), made.conv(x, 8, 8)
    x = made.op("Add", made.op("Relu", depthwise), made.op("Relu", ordinary))
    int8 = int8_of(made.model(made.gemm(made.pooled(x), 8, 5)))
    found = changed(int8)
    constants = {tensor.name for tensor in found.graph.initializer}
    assert all(node.input[1] not in constants for node in found.graph.node if node.name in ("conv1", "conv2"))


def test_answers_are_those_of_the_file_without_the_rounding_that_went(tmp_path: Path) -> None:
    float32 = gated()
    int8, batch = int8_of(float32), images(16, seed=8)
    onnx.save(int8, tmp_path / "int8.onnx")
    assert isinstance(ort._source(tmp_path / "int8.onnx"), bytes)
    exact, found = run_exact(int8, batch), run_in(Runtime.ONNXRUNTIME, tmp_path / "int8.onnx", batch)
    assert sqnr_db(exact, found) > 25
    assert sqnr_db(run_exact(float32, batch), found) >= sqnr_db(run_exact(float32, batch), exact)
    np.testing.assert_allclose(run_exact(changed(int8), batch), found, atol=0.05 * np.abs(found).max())


def test_answers_are_equal_where_no_quantizer_goes() -> None:
    """The constants have the values that ONNX Runtime dequantizes."""
    made = Builder(4)
    x = made.op("Relu", made.conv("x", 3, 8))
    x = made.conv(x, 8, 8)
    x = made.op("Mul", x, made.op("Sigmoid", x))
    int8 = int8_of(made.model(made.gemm(made.pooled(made.op("Relu", made.conv(x, 8, 8))), 8, 5)))
    found = changed(int8)
    assert operators(found).count("QuantizeLinear") == operators(int8).count("QuantizeLinear")
    batch = images(16, seed=8)
    np.testing.assert_array_equal(run_exact(found, batch), run_exact(int8, batch))


def test_factors_that_scaled_channels_for_a_quantizer_go_with_it() -> None:
    """Those before the depthwise convolution, which is float32; not those before the last, which is int8."""
    model = gated()
    ranges = np.array([100.0, *[1.0] * 7])
    scaled = scale_gates(model, dict.fromkeys(gated_tensors(model, placement.observed_tensors(model)), ranges))
    assert len(scaled) == 2
    int8, batch = int8_of(model), images(16, seed=8)
    found = changed(int8)
    assert operators(int8).count("Mul") == 4
    assert operators(found).count("Mul") == 3
    assert sqnr_db(run_exact(gated(), batch), run_exact(found, batch)) > 25
    assert sqnr_db(run_exact(int8, batch), run_exact(found, batch)) > 25


def clipping_between_float_layers() -> onnx.ModelProto:
    """Return a QDQ model in which a quantizer between operators in float32 stands for a ReLU."""
    made = Builder(5)
    x = made.op("Relu", made.conv("x", 3, 8))
    x = made.conv(x, 8, 8)
    x = made.op("Sub", x, made.op("Sigmoid", x))  # as many values below zero as above
    x = made.op("Relu", x)
    x = made.conv(x, 1, 8, group=8)
    x = made.op("Mul", x, made.op("Sigmoid", x))
    int8 = int8_of(made.model(made.gemm(made.pooled(made.op("Relu", made.conv(x, 8, 8))), 8, 5)))
    relu = next(node for node in int8.graph.node if node.name == "relu1")
    return without(int8, relu)


def without(model: onnx.ModelProto, relu: onnx.NodeProto) -> onnx.ModelProto:
    """Remove a ReLU before a quantizer, as `activations.remove_redundant` does, and note it."""
    maker = next(node for node in model.graph.node if node.output[0] == relu.input[0])
    maker.output[0] = relu.output[0]
    mark = next(each for each in model.metadata_props if each.key == CLIPPING)
    mark.value = mark.value.replace("]", f', "{relu.output[0]}"]')
    model.graph.node.remove(relu)
    return model


def test_a_quantizer_that_stands_for_a_relu_becomes_a_clip() -> None:
    int8, batch = clipping_between_float_layers(), images(16, seed=8)
    found = changed(int8)
    assert operators(found).count("QuantizeLinear") == operators(int8).count("QuantizeLinear") - 1
    assert operators(found).count("Clip") == 1
    assert sqnr_db(run_exact(int8, batch), run_exact(found, batch)) > 25


@pytest.mark.parametrize("mark", [False, True])
def test_models_stay_that_are_all_int8_or_not_of_this_pipeline(mark: bool, tmp_path: Path) -> None:
    made = Builder(6)
    plain = made.model(made.gemm(made.pooled(made.op("Relu", made.conv("x", 3, 8))), 8, 5))
    int8 = int8_of(plain) if mark else int8_of(gated())
    if not mark:
        del int8.metadata_props[:]
    before = int8.SerializeToString()
    assert not use_float_form(int8)
    assert int8.SerializeToString() == before
    onnx.save(int8, tmp_path / "int8.onnx")
    assert ort._source(tmp_path / "int8.onnx") == str(tmp_path / "int8.onnx")


def test_exact_arithmetic_stays_that_of_the_file(tmp_path: Path) -> None:
    int8, batch = int8_of(gated()), images(4, seed=8)
    onnx.save(int8, tmp_path / "int8.onnx")
    found: Float32 = ort.run_exact(tmp_path / "int8.onnx", [batch], 1)
    np.testing.assert_array_equal(found, run_exact(int8, batch))
