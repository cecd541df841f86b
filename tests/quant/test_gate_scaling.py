"""gate_scaling.py: channels behind SiLU and other gates share a scale without most of them being rounded away."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_graphs import Builder, images, ranges_seen, run_exact, sqnr_db

from pipeline.quant import qdq
from pipeline.quant.channel_order import order_channels
from pipeline.quant.equalization import channel_extremes
from pipeline.quant.gate_scaling import gated_tensors, has_scaled_gates, scale_gates
from pipeline.runtimes.activations import ActivationReader

WIDE = 60.0  # times as large as the others, one channel is


def silu(made: Builder, x: str) -> str:
    return made.op("Mul", x, made.op("Sigmoid", x))


def hard_swish(made: Builder, x: str) -> str:
    return made.op("HardSwish", x)


def excited(made: Builder, x: str) -> str:
    y = made.op("Relu", x)
    return made.op("Mul", y, made.op("Sigmoid", made.conv(made.op("GlobalAveragePool", y), 8, 8, kernel=1)))


def network(gate: Callable[[Builder, str], str], *, depthwise: bool, wide: float = WIDE) -> tuple[onnx.ModelProto, str]:
    """Return a network with a gate whose first channel is `wide` times as large, and the name of what it makes."""
    made = Builder()
    weights = made.normal(8, 3, 3, 3, spread=0.3)
    weights[0] *= wide
    x = made.op("Conv", "x", made.constant(weights), made.constant(made.normal(8)), pads=[1] * 4)
    gated = gate(made, x)
    if depthwise:
        after = made.normal(8, 1, 3, 3, spread=0.4)
        after[0] /= wide
        y = made.op("Conv", gated, made.constant(after), made.constant(made.normal(8)), pads=[1] * 4, group=8)
    else:
        after = made.normal(8, 8, 3, 3, spread=0.2)
        after[:, 0] /= wide
        y = made.op("Conv", gated, made.constant(after), made.constant(made.normal(8)), pads=[1] * 4)
    return made.model(made.gemm(made.pooled(made.conv(made.op("Relu", y), 8, 8)), 8, 5)), gated


def largest_of(model: onnx.ModelProto, *names: str) -> dict[str, np.ndarray]:
    reader = ActivationReader(model, names, threads=1)
    seen: dict[str, np.ndarray] = {}
    for image in images():
        for name, values in reader.read(image).items():
            if name in names:
                seen[name] = np.maximum(seen.get(name, 0.0), channel_extremes(values, 1))
    return seen


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("gate", [silu, hard_swish, excited])
def test_scale_gates_keeps_the_answers(gate: Callable[[Builder, str], str], *, depthwise: bool) -> None:
    model, gated = network(gate, depthwise=depthwise)
    assert list(gated_tensors(model, [gated])) == [gated]
    assert not has_scaled_gates(model)
    scaled, largest = copy_of(model), largest_of(model, gated)
    left = scale_gates(scaled, largest)
    onnx.checker.check_model(scaled)
    assert has_scaled_gates(scaled)
    batch = images()
    expected = run_exact(model, batch)
    np.testing.assert_allclose(run_exact(scaled, batch), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    factors = (largest[gated] / largest[gated].max()) ** (0.75 if depthwise else 0.5)
    assert left == {gated: pytest.approx(np.square(factors).mean(), rel=1e-3)}  # the least ratio is a thousandth


@pytest.mark.parametrize("gate", [silu, hard_swish])
def test_scale_gates_makes_the_int8_model_better_when_a_channel_is_wide(gate: Callable[[Builder, str], str]) -> None:
    model, gated = network(gate, depthwise=True)
    scaled, batch = copy_of(model), images()
    scale_gates(scaled, largest_of(model, gated))
    expected = run_exact(model, batch)

    def in_int8(each: onnx.ModelProto) -> float:
        int8 = qdq.insert_qdq(each, ranges_seen(each, batch), per_channel=True, gates_in_float=True)
        return sqnr_db(expected, run_exact(int8, batch))

    assert in_int8(scaled) > in_int8(model) + 4


def test_scale_gates_brings_channels_together_by_the_exponent() -> None:
    model, gated = network(silu, depthwise=True)
    largest = largest_of(model, gated)
    scale_gates(model, largest)
    (scaling,) = [node for node in model.graph.node if node.input[0] == gated and node.output[0].endswith("_scaled")]
    found = largest_of(model, scaling.output[0])[scaling.output[0]]
    top = largest[gated].max()
    np.testing.assert_allclose(found, top * (largest[gated] / top) ** 0.25, rtol=1e-5)


def test_scale_gates_leaves_channels_alone_that_are_alike() -> None:
    model, gated = network(silu, depthwise=True, wide=1.0)
    before = model.SerializeToString()
    assert scale_gates(model, largest_of(model, gated)) == {}
    assert not has_scaled_gates(model)
    assert model.SerializeToString() == before


def read_by(kind: str) -> tuple[onnx.ModelProto, str]:
    made = Builder()
    gated = silu(made, made.conv("x", 3, 8))
    y = made.conv(gated, 8, 8)
    if kind == "an addition":
        y = made.op("Add", y, gated)
    elif kind == "a pool":
        y = made.op("Add", y, made.op("MaxPool", gated, kernel_shape=[3, 3], pads=[1] * 4))
    elif kind == "no gate":
        gated = y = made.op("Relu", y)
    return made.model(made.gemm(made.pooled(made.conv(y, 8, 8)), 8, 5)), gated


@pytest.mark.parametrize("kind", ["an addition", "a pool", "no gate"])
def test_gated_tensors_are_those_that_only_convolutions_read(kind: str) -> None:
    model, gated = read_by(kind)
    assert gated not in gated_tensors(model, [gated])


def test_order_channels_takes_the_factors_with_their_channels() -> None:
    model, gated = network(silu, depthwise=True)
    scale_gates(model, largest_of(model, gated))
    batch = images()
    expected = run_exact(model, batch)
    layers = {node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert order_channels(model, layers) > 0
    np.testing.assert_allclose(run_exact(model, batch), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    (scaling,) = [node for node in model.graph.node if node.output[0].endswith("_scaled")]
    factors = next(numpy_helper.to_array(each) for each in model.graph.initializer if each.name == scaling.input[1])
    np.testing.assert_allclose(np.sort(factors, axis=0), np.sort(before[f"{gated}_factors"], axis=0), rtol=1e-6)
