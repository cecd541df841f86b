"""scales.py: a bias keeps its value beside filters of zeros, and beside filters that are hardly there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from small_graphs import Builder, images, ranges_seen, run_exact, run_in, sqnr_db

from pipeline.errors import DataError
from pipeline.quant import qdq
from pipeline.quant.bias_correction import Dequantized
from pipeline.quant.qmath import Range
from pipeline.quant.scales import fit_to_bias, least_scales
from pipeline.runtimes.base import Runtime

Float32 = npt.NDArray[np.float32]


def float32(*values: float) -> Float32:
    return np.array(values, np.float32)


def test_least_scales_let_a_bias_take_half_of_int32() -> None:
    bias = float32(0.3, -7e4, 1e-9)
    scales = least_scales(bias, 0.02, 3)
    np.testing.assert_allclose(np.abs(bias) / (scales * 0.02), 2.0**30, rtol=1e-6)
    # What is left holds 255 * 127 for each of 33,000 inputs, in the largest layers there are 4,608 to 25,088.
    assert 2**30 + 255 * 127 * 33_000 < 2**31


def test_least_scales_are_not_zero_when_there_is_no_bias() -> None:
    for bias in (None, float32(0, 0)):
        found = least_scales(bias, 0.02, 2)
        assert (found > 0).all()
        assert (found < 1e-25).all()
        assert ((found * 0.02).astype(np.float32) > np.finfo(np.float32).tiny).all()


def test_fit_to_bias_leaves_scales_as_they_are_when_the_bias_fits() -> None:
    weights, scales = float32(1, -2, 3, 4).reshape(2, 2), float32(0.02, 0.03)
    np.testing.assert_array_equal(fit_to_bias(scales, weights, float32(5, -9), 0.01), scales)
    np.testing.assert_array_equal(fit_to_bias(scales, weights, None, 0.01), scales)
    np.testing.assert_array_equal(fit_to_bias(scales[:1], weights, float32(5, -9), 0.01), scales[:1])


def test_fit_to_bias_takes_the_scale_of_an_empty_filter_from_its_bias() -> None:
    weights = float32(0, 0, 3, 4, 0, 0).reshape(3, 2)
    found = fit_to_bias(float32(1, 0.03, 1), weights, float32(0.3, 1, 0), 1.0)
    np.testing.assert_allclose(found, [0.3 / 2**30, 0.03, 1.0], rtol=1e-6)


def test_fit_to_bias_widens_scales_of_filters_that_are_hardly_there() -> None:
    weights = float32(1e-12, 0, 3, 4).reshape(2, 2)
    found = fit_to_bias(float32(1e-14, 0.03), weights, float32(500, 1), 0.01)
    np.testing.assert_allclose(found, [500 / 2**30 / 0.01, 0.03], rtol=1e-6)


def test_fit_to_bias_takes_the_largest_bias_when_the_tensor_has_one_scale() -> None:
    nothing = np.zeros((3, 2), np.float32)
    found = fit_to_bias(float32(1), nothing, float32(0.3, -40, 1), 0.5)
    np.testing.assert_allclose(found, [40 / 2**30 / 0.5], rtol=1e-6)
    np.testing.assert_array_equal(fit_to_bias(float32(1), nothing, None, 0.5), float32(1))


def network(change: str, first: bool) -> onnx.ModelProto:
    """Return a network whose first or second layer, depthwise or Gemm has filters of another size."""
    made = Builder()
    x = made.op("Relu", made.conv("x", 3, 8))
    depthwise = made.constant(made.normal(8, 1, 3, 3, spread=0.5))
    x = made.op("Conv", x, depthwise, made.constant(made.normal(8)), pads=[1] * 4, group=8)
    x = made.op("Relu", made.conv(made.op("Relu", x), 8, 8))
    model = made.model(made.gemm(made.op("Relu", made.gemm(made.pooled(x), 8, 8)), 8, 5))
    nodes = {node.name: node for node in model.graph.node}
    changed = ["conv0"] if first else ["conv1", "conv2", "gemm0", "gemm1"]
    known: dict[str, list[float]] = {"dead": [0, 1], "all dead": [0, 0], "faint": [1e-12, 1], "denormal": [1e-40, 1]}
    factors = known[change]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in changed:
        weights = tensors[nodes[name].input[1]]
        values = numpy_helper.to_array(weights).copy()
        for output in range(len(values)):
            values[output] *= np.float32(factors[output % 2])
        weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    return model


@pytest.mark.parametrize("runtime", [Runtime.ONNXRUNTIME, pytest.param(Runtime.OPENVINO, marks=pytest.mark.openvino)])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("change", ["dead", "all dead", "faint", "denormal"])
def test_insert_qdq_keeps_biases_when_filters_are_zero_or_hardly_there(
    change: str, first: bool, per_channel: bool, runtime: Runtime, tmp_path: Path
) -> None:
    if runtime is Runtime.OPENVINO:
        pytest.importorskip("openvino")
    model = network(change, first)
    ranges = ranges_seen(model, images()) | {"x": Range(0.0, 255.0)}  # as pixels: whole steps of 1
    batch = images()
    int8 = qdq.insert_qdq(model, ranges, per_channel=per_channel)
    read, before = Dequantized(int8), {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            constants = read.constants_of(node.name)
            assert constants is not None
            weights, bias = constants
            given = before[node.input[2]]
            step = np.abs(before[node.input[1]]).max() / 127 * max(1.0, np.abs(given).max())
            np.testing.assert_allclose(bias, given, atol=max(1e-6, step), rtol=1e-6, err_msg=node.name)
            empty = ~before[node.input[1]].reshape(len(given), -1).any(axis=1)
            if per_channel:
                np.testing.assert_allclose(bias[empty], given[empty], rtol=1e-6, err_msg=node.name)
            assert np.isfinite(weights).all()
    exact = run_exact(int8, batch)
    onnx.save(int8, tmp_path / "m.onnx")
    assert sqnr_db(exact, run_in(runtime, tmp_path / "m.onnx", batch)) > 60


@pytest.mark.parametrize("seed", [0, 1])
def test_insert_qdq_answers_as_float32_when_half_of_the_filters_are_dead(seed: int) -> None:
    """The same accuracy as with live filters: what remains of a dead one is its bias, and no rounding of it."""
    for change in ("dead", "faint"):
        model = network(change, first=False)
        int8 = qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True)
        assert sqnr_db(run_exact(model, images(seed=seed + 9)), run_exact(int8, images(seed=seed + 9))) > 35


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("position", "what"), [(1, "weights"), (2, "bias")])
def test_insert_qdq_raises_when_a_layer_holds_values_that_are_not_finite(
    position: int, what: str, value: float
) -> None:
    model = network("dead", first=True)
    ranges = ranges_seen(model, images())
    node = next(node for node in model.graph.node if node.name == "conv2")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[position])
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[3] = value
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(DataError) as caught:
        qdq.insert_qdq(model, ranges, per_channel=True)
    assert str(caught.value) == f"layer conv2: its {what} hold NaN or Inf; check the checkpoint"
