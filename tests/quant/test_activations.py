"""activations.py: what a ReLU or Clip does is done in the int8 model, by the quantizer or by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.quant_utils import compute_scale_zp
from small_graphs import Builder, between_convolutions, images, kinds_of, ranges_seen, run_exact, run_in, sqnr_db

from pipeline.quant import activations, placement, qdq
from pipeline.quant.qmath import Range
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.executed import count_int8

Part = Callable[[Builder, str], str]


def as_int8(model: onnx.ModelProto, **more: object) -> onnx.ModelProto:
    return qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True, **more)  # type: ignore[arg-type]


def relu(made: Builder, x: str) -> str:
    return made.op("Relu", x)


def max_pool(made: Builder, x: str) -> str:
    return made.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])


# Activations whose cut a quantizer can make, the only readers of the convolution before them.
TAKEN_IN: dict[str, Part] = {
    "relu": relu,
    "relu6": lambda made, x: made.clip(x, 0, 6),
    "around zero": lambda made, x: made.clip(x, -1, 1),
    "around zero, lopsided": lambda made, x: made.clip(x, -0.5, 1.3),
    "from below": lambda made, x: made.clip(x, -0.7, None),
    "from above": lambda made, x: made.clip(x, None, 0.9),
    "no bounds": lambda made, x: made.clip(x, None, None),
    "two in turn": lambda made, x: relu(made, made.clip(x, -1, 1)),
    "one in two": lambda made, x: made.clip(made.clip(x, -1, None), None, 1),
    "after pooling": lambda made, x: relu(made, max_pool(made, x)),
    "before pooling": lambda made, x: max_pool(made, made.clip(x, -1, 1)),
}


@pytest.mark.parametrize("name", TAKEN_IN)
def test_insert_qdq_leaves_an_activation_out_when_the_quantizer_cuts_at_the_same_values(
    name: str, tmp_path: Path
) -> None:
    """With the activation kept between two quantizers the model gives the same answers, to the bit."""
    model = between_convolutions(TAKEN_IN[name])
    assert run_exact(model, images()).shape == (16, 5)
    without, kept = as_int8(model), as_int8(model, float_layers=kinds_of(model, "Relu", "Clip"))
    assert kinds_of(without, "Relu", "Clip") == []
    assert len(kinds_of(kept, "Relu", "Clip")) == len(kinds_of(model, "Relu", "Clip"))
    np.testing.assert_array_equal(run_exact(without, images()), run_exact(kept, images()))
    assert sqnr_db(run_exact(model, images()), run_exact(without, images())) > 30
    onnx.save(without, tmp_path / "m.onnx")
    found = count_int8(Runtime.ONNXRUNTIME, tmp_path / "m.onnx")
    assert (found["int8"], found["other_float"]) == (4, {})


# A part, and what of it stays in the int8 model.
KEPT: dict[str, tuple[Part, list[str]]] = {
    "above zero": (lambda made, x: made.clip(x, 0.5, 3), ["clip0"]),
    "below zero": (lambda made, x: made.clip(x, -3, -0.5), ["clip0"]),
    "from below, above zero": (lambda made, x: made.clip(x, 0.2, None), ["clip0"]),
    "crossed bounds": (lambda made, x: made.clip(x, 1, 0.5), ["clip0"]),
    "relu before it": (lambda made, x: made.clip(relu(made, x), 0.5, 3), ["clip0"]),
    "relu behind it": (lambda made, x: relu(made, made.clip(x, 0.5, 3)), ["clip0"]),
    "computed bounds": (
        lambda made, x: made.op("Clip", x, made.op("ReduceMin", x, keepdims=0), made.op("ReduceMean", x, keepdims=0)),
        ["clip0"],
    ),
    "another reader": (lambda made, x: made.op("Add", relu(made, x), x), ["relu1"]),
    "two clips of one": (lambda made, x: made.op("Add", made.clip(x, 0, 1), made.clip(x, -1, 0)), ["clip0", "clip1"]),
    "float on both sides": (
        lambda made, x: made.op("Tanh", relu(made, max_pool(made, made.op("Tanh", x)))),
        ["relu1"],
    ),
}


@pytest.mark.parametrize("runtime", [Runtime.ONNXRUNTIME, pytest.param(Runtime.OPENVINO, marks=pytest.mark.openvino)])
@pytest.mark.parametrize("name", KEPT)
def test_insert_qdq_keeps_an_activation_when_no_quantizer_cuts_as_it_does(
    name: str, runtime: Runtime, tmp_path: Path
) -> None:
    if runtime is Runtime.OPENVINO:
        pytest.importorskip("openvino")
    part, kept = KEPT[name]
    model = between_convolutions(part)
    int8 = as_int8(model)
    assert kinds_of(int8, "Relu", "Clip") == kept
    expected = run_exact(model, images())
    assert sqnr_db(expected, run_exact(int8, images())) > 32
    onnx.save(int8, tmp_path / "m.onnx")
    assert sqnr_db(expected, run_in(runtime, tmp_path / "m.onnx", images())) > 32
    assert count_int8(runtime, tmp_path / "m.onnx")["float_layers"] == []


@pytest.mark.parametrize("kind", ["LeakyRelu", "PRelu", "HardSigmoid", "Elu"])
def test_range_sources_gives_a_convolution_its_own_range_when_another_activation_follows(kind: str) -> None:
    slope = kind == "PRelu"
    model = between_convolutions(lambda made, x: made.op(kind, x, *([made.constant(0.2)] if slope else [])))
    convolution, activation = (
        next(node.output[0] for node in model.graph.node if node.name == name) for name in ("conv1", f"{kind.lower()}0")
    )
    sources = placement.range_sources(model)
    assert (sources[convolution], sources[activation]) == (convolution, activation)
    int8 = as_int8(model)
    assert kinds_of(int8, kind) == [f"{kind.lower()}0"]
    assert sqnr_db(run_exact(model, images()), run_exact(int8, images())) > 35


def test_range_sources_gives_a_chain_of_activations_the_range_of_the_last() -> None:
    model = between_convolutions(lambda made, x: relu(made, max_pool(made, made.clip(x, -1, 1))))
    made = {node.name: node.output[0] for node in model.graph.node}
    sources = placement.range_sources(model)
    assert {sources[made[name]] for name in ("conv1", "clip0", "maxpool0", "relu1")} == {made["relu1"]}


def quantizer_of(covered: Range) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and zero point as `onnxruntime.quantization` computes them."""
    zero_point, scale = compute_scale_zp(
        np.float32(covered.low), np.float32(covered.high), np.array(0, np.uint8), np.array(255, np.uint8)
    )
    return scale, zero_point


@pytest.mark.parametrize("seed", range(20))
def test_within_bounds_gives_ranges_whose_quantizers_end_at_the_bounds_when_zero_is_between(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(50):
        low, high = -rng.exponential(), rng.exponential()
        if rng.random() < 0.3:  # where a bound falls midway between two levels
            low, high = -(rng.integers(0, 255) + 0.5), 0.0
            high = 255 + low
        seen = Range(low * rng.choice([1.0, 1.5, 0.9]), high * rng.choice([1.0, 2.0, 0.7]))
        scale, zero_point = quantizer_of(activations.within_bounds(seen, (low, high)))
        levels = activations.quantize(np.array([low, high], np.float32), scale, zero_point)
        assert levels.tolist() == [0, 255], (low, high, seen)


@pytest.mark.parametrize(
    ("bounds", "seen"),
    [((0.5, 3.0), Range(0, 3)), ((-3.0, -0.5), Range(-3, 0)), ((0.3, math.inf), Range(0, 4.7))],
)
def test_within_bounds_puts_the_bound_next_to_zero_on_a_level_when_zero_is_outside(
    bounds: tuple[float, float], seen: Range
) -> None:
    found = activations.within_bounds(seen, bounds)
    assert found.low <= seen.low
    assert found.high >= seen.high
    assert found.high - found.low <= 1.125 * (seen.high - seen.low)
    scale, _ = quantizer_of(found)
    steps = (bounds[0] if bounds[0] > 0 else bounds[1]) / float(scale)
    assert steps == pytest.approx(round(steps), abs=1e-3)


def test_within_bounds_leaves_the_range_when_the_bound_is_a_few_steps_from_zero() -> None:
    assert activations.within_bounds(Range(0, 3), (0.05, 3.0)) == Range(0, 3)
    assert activations.within_bounds(Range(-1, 3), None) == Range(-1, 3)
    assert activations.within_bounds(Range(-1e-6, 3), (0.0, math.inf)) == Range(0, 3)


def clip_of(*bounds: float | None, **attributes: float) -> tuple[onnx.NodeProto, dict[str, onnx.TensorProto]]:
    named = ["" if bound is None else f"bound{position}" for position, bound in enumerate(bounds)]
    known = {
        name: numpy_helper.from_array(np.float32(bound), name)
        for name, bound in zip(named, bounds, strict=True)
        if name
    }
    return helper.make_node("Clip", ["a", *named], ["b"], "clip", None, None, None, **attributes), known


def test_bounds_of_reads_inputs_and_attributes() -> None:
    inf = math.inf
    assert activations.bounds_of(helper.make_node("Relu", ["a"], ["b"]), {}) == (0, inf)
    assert activations.bounds_of(*clip_of(-1.0, 2.0)) == (-1, 2)
    assert activations.bounds_of(*clip_of(None, 2.0)) == (-inf, 2)
    assert activations.bounds_of(*clip_of(-1.0)) == (-1, inf)
    assert activations.bounds_of(*clip_of()) == (-inf, inf)
    assert activations.bounds_of(*clip_of(3.0, 2.0)) == (2, 2)
    assert activations.bounds_of(*clip_of(min=-1.0, max=6.0)) == (-1, 6)
    assert activations.bounds_of(clip_of(-1.0, 2.0)[0], {}) is None


@pytest.mark.parametrize(("zero_point", "left"), [(0, []), (1, ["relu"])])
def test_remove_redundant_keeps_a_relu_when_the_zero_point_is_off_by_one(zero_point: int, left: list[str]) -> None:
    constants = {"scale": np.float32(0.1), "zero": np.uint8(zero_point), "w": np.ones((2, 3, 1, 1), np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
            helper.make_node("Relu", ["c"], ["r"], "relu"),
            helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["q"], "q"),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], "dq"),
        ],
        "made by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 3, 12, 12))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    before = run_exact(model, images())
    activations.remove_redundant(model, [])
    assert kinds_of(model, "Relu") == left
    np.testing.assert_array_equal(run_exact(model, images()), before)


@pytest.mark.parametrize(("low", "high"), [(0.2, None), (0.3, 0.9), (-3.0, -0.2), (0.1, 2.0)])
def test_insert_qdq_gives_the_same_in_openvino_when_a_clip_stays(
    tmp_path: Path, low: float | None, high: float | None
) -> None:
    def part(made: Builder, x: str) -> str:
        return made.clip(x, low, high)

    model = between_convolutions(part)
    quantized = qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True)
    assert len(kinds_of(quantized, "Clip")) == 1
    onnx.save(quantized, tmp_path / "m.onnx")
    exact = run_exact(quantized, images())
    assert sqnr_db(exact, run_in(Runtime.OPENVINO, tmp_path / "m.onnx", images())) > 45


def test_put_on_levels_changes_no_level_of_a_quantizer() -> None:
    values = np.linspace(-1, 4, 4001, dtype=np.float32)
    for low in (0.2, 0.23, 0.2619, 1.0):
        scale, zero_point = np.float32(0.0137), np.uint8(0)
        constants = {"low": np.float32(low), "scale": scale, "zero": zero_point}
        graph = helper.make_graph(
            [
                helper.make_node("Clip", ["x", "low"], ["c"], "clip"),
                helper.make_node("QuantizeLinear", ["c", "scale", "zero"], ["y"], "quantizer"),
            ],
            "made by hand",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N"])],
            [helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, ["N"])],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        expected = run_exact(model, values)
        activations.put_on_levels(model)
        bound = next(each for each in model.graph.initializer if each.name == model.graph.node[0].input[1])
        assert abs(numpy_helper.to_array(bound) / scale - (np.rint(np.float32(low) / scale) - 0.01)) < 1e-3
        np.testing.assert_array_equal(run_exact(model, values), expected)
