from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import SIDE, Builder, images

from pipeline.onnx_models import classifier
from pipeline.quant.float16 import to_float16


def with_softmax(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    classifier.append_softmax(copy)
    return copy


def test_to_float16_keeps_inputs_answers_and_the_softmax_in_float32(
    tiny_model: onnx.ModelProto, batch_nchw: npt.NDArray[np.float32]
) -> None:
    source = with_softmax(tiny_model)
    before = source.SerializeToString()
    model = to_float16(source)
    onnx.checker.check_model(model, full_check=True)
    assert source.SerializeToString() == before
    values = [*model.graph.input, *model.graph.output]
    assert {value.type.tensor_type.elem_type for value in values} == {TensorProto.FLOAT}
    assert not [weight.name for weight in model.graph.initializer if weight.data_type == TensorProto.FLOAT]
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    cast = next(node for node in model.graph.node if softmax.input[0] in node.output)
    assert (cast.op_type, cast.attribute[0].i) == ("Cast", TensorProto.FLOAT)
    expected, found = classifier.run(source, batch_nchw), classifier.run(model, batch_nchw)
    np.testing.assert_allclose(found, expected, atol=5e-3)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)  # float16 would give 1 to three digits


def test_to_float16_cuts_and_rounds_without_a_word(tiny_model: onnx.ModelProto) -> None:
    source = onnx.ModelProto()
    source.CopyFrom(tiny_model)
    weight = next(tensor for tensor in source.graph.initializer if len(tensor.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    values.flat[:2] = (1e-12, 1e9)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = to_float16(source)
    cut = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == weight.name))
    assert np.isfinite(cut).all()
    assert abs(cut.flat[0]) < 1e-7
    assert cut.flat[1] == 65504


TAILS = {
    "softmax_reshaped": [
        helper.make_node("Softmax", ["logits"], ["s"], "soft", axis=1),
        helper.make_node("Flatten", ["s"], ["scores"], "flat"),
    ],
    "sigmoid": [helper.make_node("Sigmoid", ["logits"], ["scores"], "each")],
    "spelt": [
        helper.make_node("Exp", ["logits"], ["e"], "exp"),
        helper.make_node("ReduceSum", ["e", "axes"], ["sum"], "sum", keepdims=1),
        helper.make_node("Div", ["e", "sum"], ["scores"], "div"),
    ],
}


@pytest.mark.parametrize("tail", TAILS)
def test_to_float16_keeps_scores_apart_when_the_network_ends_in_them(
    tail: str, tiny_model: onnx.ModelProto, batch_nchw: npt.NDArray[np.float32]
) -> None:
    """Scores near 1 differ by less than float16 can hold there, 0.0005."""
    source = onnx.ModelProto()
    source.CopyFrom(tiny_model)
    graph = source.graph
    for node in graph.node:
        node.output[:] = ["logits" if name == graph.output[0].name else name for name in node.output]
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "axes"))
    graph.node.extend(TAILS[tail])
    graph.output[0].name = "scores"
    model = to_float16(source)
    onnx.checker.check_model(model, full_check=True)
    found = classifier.run(model, batch_nchw)
    np.testing.assert_allclose(found, classifier.run(source, batch_nchw), atol=5e-3)
    assert not np.array_equal(found, found.astype(np.float16).astype(np.float32))
    assert {t.data_type for t in model.graph.initializer if len(t.dims) > 1} == {TensorProto.FLOAT16}


def test_to_float16_keeps_a_resize_to_a_size_when_its_scales_are_an_empty_tensor() -> None:
    """As torch writes it in opset 11 and 12."""
    made = Builder()
    x = made.op("Conv", "x", made.constant(made.normal(4, 3, 1, 1)))
    empty, sizes = made.constant(np.zeros(0)), made.constant([1, 4, 2 * SIDE, 2 * SIDE], np.int64)
    x = made.op("Resize", x, empty, empty, sizes, mode="linear")
    source = made.model(made.gemm(made.op("Flatten", made.op("GlobalAveragePool", x)), 4, 5))
    model = to_float16(source)
    onnx.checker.check_model(model, full_check=True)
    expected, found = classifier.run(source, images(1)), classifier.run(model, images(1))
    np.testing.assert_allclose(found, expected, atol=5e-3)
