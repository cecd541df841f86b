"""Biases that several readers share."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_graphs import Builder, images, ranges_seen, run_exact, sqnr_db

from pipeline.quant import qdq
from pipeline.quant.bias_correction import correct_biases
from pipeline.quant.own_constants import give_own_constants
from pipeline.quant.placement import layer_inputs
from pipeline.runtimes.activations import ActivationReader


def shared(*, behind_identity: bool) -> onnx.ModelProto:
    """Return a network of which two convolutions, a norm's scale and an addition in a stream read one tensor."""
    made = Builder(5)
    bias = made.constant(np.array([3.0, -2, 1, 0.5, 2, -1, 1, 1]))
    other = made.op("Identity", bias) if behind_identity else bias
    x = made.op("Relu", made.op("Conv", "x", made.constant(made.normal(8, 3, 3, 3)), bias))
    x = made.op("Relu", made.op("Conv", x, made.constant(made.normal(8, 8, 3, 3, spread=0.1)), other))
    rows = made.op("Transpose", made.op("Reshape", x, made.constant([0, 8, 64], np.int64)), perm=[0, 2, 1])
    normed = made.op("LayerNormalization", made.op("Add", rows, other), other, made.constant(np.zeros(8)))
    product = made.op("MatMul", normed, made.constant(made.normal(8, 8)))
    return made.model(made.gemm(made.op("ReduceMean", product, axes=[1], keepdims=0), 8, 5))


@pytest.mark.parametrize("behind_identity", [False, True])
def test_give_own_constants_changes_no_answer_and_leaves_no_bias_to_two(behind_identity: bool) -> None:
    model = shared(behind_identity=behind_identity)
    before = run_exact(model, images(4))
    give_own_constants(model)
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(run_exact(model, images(4)), before)
    assert not [node for node in model.graph.node if node.op_type == "Identity"]
    biases = [node.input[2] for node in model.graph.node if node.op_type == "Conv"]
    read = [name for node in model.graph.node for name in node.input]
    assert [read.count(name) for name in biases] == [1, 1]


@pytest.mark.parametrize("behind_identity", [False, True])
def test_int8_model_corrects_a_shared_bias_for_its_own_layer_alone(behind_identity: bool) -> None:
    model, batch = shared(behind_identity=behind_identity), images(24)
    reader = ActivationReader(model, list(layer_inputs(model)), threads=1)
    sums: dict[str, np.ndarray] = {}
    for image in batch:
        for name, axis in layer_inputs(model).items():
            values = np.moveaxis(reader.read(image)[name], axis, 0)
            sums[name] = sums.get(name, np.zeros(len(values))) + values.reshape(len(values), -1).mean(
                axis=1, dtype=np.float64
            )
    int8 = qdq.insert_qdq(model, ranges_seen(model, batch), per_channel=True)
    corrected = correct_biases(int8, model, {name: total / len(batch) for name, total in sums.items()})
    assert {"conv0", "conv1"} <= corrected.keys()
    nodes = {node.name: node for node in int8.graph.node}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    expected = [3.0, -2, 1, 0.5, 2, -1, 1, 1]
    np.testing.assert_array_equal(stored[nodes["add0"].input[1]], expected)
    np.testing.assert_array_equal(stored[nodes["layernormalization0"].input[1]], expected)
    assert sqnr_db(run_exact(model, batch), run_exact(int8, batch)) > 25


def test_give_own_constants_leaves_shared_weights_and_other_constants() -> None:
    made = Builder(5)
    weights, bounds = made.constant(made.normal(3, 3, 3, 3)), [made.constant(0.0), made.constant(6.0)]
    x = made.op("Clip", made.op("Conv", "x", weights), *bounds)
    x = made.op("Clip", made.op("Conv", x, weights), *bounds)
    model = made.model(made.gemm(made.pooled(x), 3, 5))
    before = model.SerializeToString()
    give_own_constants(model)
    assert model.SerializeToString() == before
