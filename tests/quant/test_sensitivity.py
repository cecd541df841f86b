"""What each quantizer costs by itself, against the whole model run with only that quantizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from small_graphs import SIDE, Builder, images, ranges_seen, run_exact

from pipeline.quant import placement, qdq
from pipeline.quant.assemble import Parts, assemble
from pipeline.quant.divergence import Divergence
from pipeline.quant.graphs import work_of_layers
from pipeline.quant.int8_weights import round_to_nearest, scales_of
from pipeline.quant.neighbours import weight_pairs
from pipeline.quant.qmath import Range
from pipeline.quant.sensitivity import Kind, Sensitivity, fake_quantize


def residual_network(seed: int = 0) -> onnx.ModelProto:
    random = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return np.asarray(random.normal(size=shape) / np.sqrt(np.prod(shape[1:])), np.float32)

    constants = {
        "w0": weights(8, 3, 3, 3),
        "b0": weights(8, 1)[:, 0],
        "w1": weights(8, 8, 3, 3),
        "b1": weights(8, 1)[:, 0],
        "w2": weights(5, 8),
        "b2": weights(5, 1)[:, 0],
    }
    same: dict[str, Any] = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        helper.make_node("Conv", ["input", "w0", "b0"], ["c0"], "conv0", **same),
        helper.make_node("Relu", ["c0"], ["r0"], "relu0"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], "conv1", **same),
        helper.make_node("Add", ["c1", "r0"], ["sum"], "add"),
        helper.make_node("Relu", ["sum"], ["r1"], "relu1"),
        helper.make_node("GlobalAveragePool", ["r1"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "w2", "b2"], ["logits"], "classifier", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


IMAGES = [np.random.default_rng(seed).normal(size=(3, 8, 8)).astype(np.float32) for seed in range(6)]


def run(model: onnx.ModelProto) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    answers: np.ndarray = session.run(None, {"input": np.stack(IMAGES)})[0]
    return answers


@pytest.fixture(scope="module")
def parts() -> Parts:
    names = placement.observed_tensors(residual_network())
    return Parts(ranges={name: Range(0.0 if name.startswith("r") else -3.0, 4.0) for name in names}, per_channel=True)


def with_one_quantizer(model: onnx.ModelProto, name: str, covered: Range) -> onnx.ModelProto:
    """Return the float model with a quantizer and a dequantizer after one activation."""
    scale = np.float32((covered.high - covered.low) / 255)
    for node in model.graph.node:
        node.input[:] = [f"{name}_back" if each == name else each for each in node.input]
    constants = [np.array(scale), np.array(round(-covered.low / scale), np.uint8)]
    model.graph.initializer.extend(
        numpy_helper.from_array(value, key) for value, key in zip(constants, ("scale", "zero"), strict=True)
    )
    pair = [
        helper.make_node("QuantizeLinear", [name, "scale", "zero"], ["levels"]),
        helper.make_node("DequantizeLinear", ["levels", "scale", "zero"], [f"{name}_back"]),
    ]
    made = [index for index, node in enumerate(model.graph.node) if name in node.output]
    for offset, node in enumerate(pair):
        model.graph.node.insert((made[0] + 1 if made else 0) + offset, node)
    return model


@pytest.mark.parametrize("name", ["input", "r0", "c1", "r1", "pooled"])
def test_activation_costs_what_the_model_with_that_quantizer_alone_loses(parts: Parts, name: str) -> None:
    model = residual_network()
    costs = {c.name: c for c in Sensitivity(model, assemble(model, parts).model, parts.ranges).measure(IMAGES, int)}
    single = with_one_quantizer(residual_network(), name, parts.ranges[name])
    expected = Divergence()
    expected.add(run(model), run(single))
    assert costs[name].sqnr_db == pytest.approx(expected.sqnr_db, abs=0.05)
    assert costs[name].kl == pytest.approx(expected.kl, rel=0.02)


def test_weights_cost_what_the_model_with_those_weights_alone_loses(parts: Parts) -> None:
    model = residual_network()
    costs = Sensitivity(model, assemble(model, parts).model, parts.ranges).measure(IMAGES, int)
    rounded = residual_network()
    for tensor in rounded.graph.initializer:
        if tensor.name == "w1":
            values = numpy_helper.to_array(tensor)
            rows, pairs = values.reshape(len(values), -1), weight_pairs(values.shape)
            scales = scales_of(rows, pairs, per_channel=True)
            steps = round_to_nearest(rows, scales, pairs) * scales[:, None]
            tensor.CopyFrom(numpy_helper.from_array(steps.reshape(values.shape), "w1"))
    expected = Divergence()
    expected.add(run(model), run(rounded))
    (cost,) = (cost for cost in costs if cost.kind is Kind.WEIGHTS and cost.name == "conv1")
    assert cost.sqnr_db == pytest.approx(expected.sqnr_db, abs=0.1)


def test_costs_come_with_the_most_expensive_first_and_name_their_readers(parts: Parts) -> None:
    model = residual_network()
    sensitivity = Sensitivity(model, assemble(model, parts).model, parts.ranges)
    advanced: list[int] = []
    costs = sensitivity.measure(IMAGES, lambda: advanced.append(1))
    assert len(advanced) == len(sensitivity) == len(costs) == 8  # 5 activations, 3 layers
    assert [cost.noise for cost in costs] == sorted((cost.noise for cost in costs), reverse=True)
    assert {cost.name: cost.readers for cost in costs if cost.kind is Kind.ACTIVATION} == {
        "input": ("conv0",),
        "r0": ("conv1",),
        "c1": (),
        "r1": (),
        "pooled": ("classifier",),
    }


def test_activations_that_stay_float_cost_nothing_and_are_left_out(parts: Parts) -> None:
    model = residual_network()
    lighter = parts.leaving(placement.classifier_inputs(model))
    sensitivity = Sensitivity(model, assemble(model, lighter).model, parts.ranges)
    assert {cost.name for cost in sensitivity.measure(IMAGES, int)} == {"input", "r0", "c1", "r1", "conv0", "conv1"}


def test_float_activations_take_their_readers_along(parts: Parts) -> None:
    model = residual_network()
    whole, lighter = assemble(model, parts).model, assemble(model, parts.leaving({"r0"})).model
    assert qdq.count_quantized(whole) == {"weighted": 3, "quantized": 3}
    assert qdq.count_quantized(lighter) == {"weighted": 3, "quantized": 2}
    quantized = {node.input[0] for node in lighter.graph.node if node.op_type == "QuantizeLinear"}
    assert not quantized & {"c0", "r0"}
    # Errors of a network this small cancel by chance: the sum over several of them counts.
    errors = np.zeros(2)
    for seed in range(12):
        model = residual_network(seed)
        every = Parts(ranges=ranges_seen(model, np.stack(IMAGES)), per_channel=True)
        made = [assemble(model, each).model for each in (every, every.leaving({"r0"}))]
        errors += [float(np.square(run(each) - run(model)).mean()) for each in made]
    assert errors[1] < errors[0]


def test_all_activations_in_float_give_the_float_answers(parts: Parts) -> None:
    model = residual_network()
    np.testing.assert_allclose(
        run(assemble(model, parts.leaving(parts.ranges)).model), run(model), rtol=1e-4, atol=1e-5
    )


def test_classifier_input_is_none_where_convolutions_read_it_too() -> None:
    model = residual_network()
    assert placement.classifier_inputs(model) == {"pooled"}
    pooled = next(node for node in model.graph.node if node.name == "pool")
    pooled.CopyFrom(helper.make_node("MaxPool", ["r0"], ["pooled"], "pool", kernel_shape=[8, 8]))
    assert placement.classifier_inputs(model) == frozenset()  # it has the scale of r0, which a convolution reads


def test_work_counts_multiply_accumulates() -> None:
    assert work_of_layers(residual_network()) == {"conv0": 8 * 27 * 64, "conv1": 8 * 72 * 64, "classifier": 40}


def test_fake_quantize_gives_back_what_a_uint8_quantizer_does() -> None:
    values = np.array([-9, -1.004, 0, 0.011, 1.549, 9], np.float32)
    found = fake_quantize(values, Range(-1.0, 1.55))  # steps of 0.01
    np.testing.assert_allclose(found, [-1, -1, 0, 0.01, 1.55, 1.55], atol=1e-6)


def attention() -> onnx.ModelProto:
    """Return a network of one attention over 16 positions, by a computed shape, with a head in float64."""
    made = Builder()
    x = made.op("AveragePool", made.conv("x", 3, 8), kernel_shape=[3, 3], strides=[3, 3])
    batch = made.op("Slice", made.op("Shape", x), *(made.constant([at], np.int64) for at in (0, 1, 0)))
    shape = made.op("Concat", batch, made.constant([8, 16], np.int64), axis=0)
    rows = made.op("Transpose", made.op("Reshape", x, shape), perm=[0, 2, 1])
    query, key, value = (made.op("MatMul", rows, made.constant(made.normal(8, 8, spread=0.3))) for _ in range(3))
    scores = made.op("MatMul", query, made.op("Transpose", key, perm=[0, 2, 1]))
    mixed = made.op("MatMul", made.op("Softmax", scores, axis=-1), value)
    pooled = made.op("ReduceMean", made.op("Add", rows, mixed), axes=[1], keepdims=0)
    wide = made.op("Cast", made.gemm(pooled, 8, 8), to=onnx.TensorProto.DOUBLE)
    product = made.op("MatMul", wide, made.constant(made.normal(8, 5), np.float64))
    return made.model(made.op("Cast", product, to=onnx.TensorProto.FLOAT))


def test_work_counts_products_of_two_activations_and_every_row_of_a_matrix() -> None:
    position = 8 * 8
    assert work_of_layers(attention()) == {
        "conv0": 8 * 27 * SIDE * SIDE,
        **{f"matmul{index}": 16 * position for index in range(3)},
        "matmul3": 16 * 16 * 8,
        "matmul4": 16 * 16 * 8,
        "gemm0": position,
        "matmul5": 8 * 5,
    }


def test_measure_costs_every_quantizer_when_shapes_and_float64_cross_the_cuts() -> None:
    model = attention()
    ranges = ranges_seen(model, images())
    int8 = qdq.insert_qdq(model, ranges, per_channel=True)
    costs = {cost.name: cost for cost in Sensitivity(model, int8, ranges).measure(list(images(6)), int)}
    assert {cost.kind for cost in costs.values()} == {Kind.ACTIVATION, Kind.WEIGHTS}
    assert all(20 < cost.sqnr_db < 200 for cost in costs.values())
    # Products of activations are computed in float: nothing that only they read costs anything.
    products = [node for node in model.graph.node if node.name in ("matmul3", "matmul4")]
    assert not {name for node in products for name in node.input} & costs.keys()
    # Noises so small add up to about what the int8 model loses.
    expected, found = run_exact(model, images(6)), run_exact(int8, images(6))
    whole = np.square(expected - found, dtype=np.float64).sum() / 6
    assert 0.25 < sum(cost.noise for cost in costs.values()) / whole < 4
