"""graphs.py: which tensors are float32."""

from __future__ import annotations

import numpy as np
import onnx
from small_graphs import Builder, images, ranges_seen, run_exact, sqnr_db

from pipeline.quant import placement, qdq
from pipeline.quant.graphs import activation_shapes, not_float32
from pipeline.quant.layers import layers_of


def float64_inside() -> onnx.ModelProto:
    made = Builder()
    x = made.op("Relu", made.conv("x", 3, 8))
    wide = made.op("Mul", made.op("Cast", x, to=onnx.TensorProto.DOUBLE), made.constant(0.5, np.float64))
    x = made.op("Cast", made.op("Relu", made.op("Add", wide, wide)), to=onnx.TensorProto.FLOAT)
    positive = made.op("Greater", x, made.constant(0.1))
    x = made.op("Where", positive, x, made.op("Mul", x, made.constant(0.1)))
    return made.model(made.gemm(made.pooled(made.op("Relu", made.conv(x, 8, 8))), 8, 5))


def test_not_float32_follows_types_through_the_graph() -> None:
    model = float64_inside()
    makers = {node.output[0]: node.name for node in model.graph.node}
    found = {makers[name] for name in not_float32(model.graph) if name in makers}
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    wanted = {makers[value.name] for value in inferred if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT}
    assert found == wanted == {"cast0", "mul0", "add0", "relu1", "greater0"}


def test_observed_tensors_are_float32_when_a_part_is_computed_in_float64() -> None:
    model = float64_inside()
    assert not not_float32(model.graph).intersection(placement.observed_tensors(model))
    int8 = qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True)
    assert qdq.count_quantized(int8) == {"weighted": 3, "quantized": 3}
    assert sqnr_db(run_exact(model, images()), run_exact(int8, images())) > 35


def test_layers_of_leaves_out_a_layer_in_float64() -> None:
    made = Builder()
    wide = made.op("Cast", made.pooled(made.op("Relu", made.conv("x", 3, 8))), to=onnx.TensorProto.DOUBLE)
    weights, bias = made.constant(made.normal(8, 8), np.float64), made.constant(made.normal(8), np.float64)
    hidden = made.op("Relu", made.op("Gemm", wide, weights, bias, transB=1))
    model = made.model(made.gemm(made.op("Cast", hidden, to=onnx.TensorProto.FLOAT), 8, 5))
    assert [layer.name for layer in layers_of(model)] == ["conv0", "gemm1"]
    assert placement.layer_inputs(model) == {"x": 1, model.graph.node[-1].input[0]: 1}
    int8 = qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True)
    assert qdq.count_quantized(int8) == {"weighted": 3, "quantized": 2}
    assert sqnr_db(run_exact(model, images()), run_exact(int8, images())) > 30


def test_activation_shapes_are_those_that_inference_finds_with_the_weights() -> None:
    made = Builder()
    x = made.op("Relu", made.conv("x", 3, 64))  # its weights exceed what shape inference is given
    x = made.op("Reshape", made.pooled(x), made.constant([0, 8, 8], np.int64))
    x = made.op("MatMul", x, made.constant(made.normal(8, 64)))
    model = made.model(made.gemm(made.op("Flatten", x), 512, 5))
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    wanted = {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}
    assert activation_shapes(model) == wanted
    assert (0, 8, 64) in wanted.values()
