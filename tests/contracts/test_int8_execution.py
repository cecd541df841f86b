"""What each runtime computes in int8 of a file with quantizers on all sides, counted in the graphs that they execute.

Seen with onnxruntime 1.32.0 and openvino 2026.4.1 on x86 CPUs with AVX2 and with AVX-512 VNNI. Packages put quantizers
where these counts say that they help (`pipeline/quant/placement.py`, `pipeline/quant/activations.py`).
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from small_graphs import SIDE, Builder

from pipeline.runtimes.base import Runtime
from pipeline.runtimes.executed import count_int8

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the kernels of x86 CPUs")

CHANNELS = 8


class Quantized(Builder):
    """A graph whose tensors are quantized where it says so; weights and biases are int8 and int32 in the file."""

    def qdq(self, x: str, zero: int = 128, scale: float = 0.02) -> str:
        parameters = self.constant(scale), self.constant(zero, np.uint8)
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, *parameters), *parameters)

    def stored(self, dtype: type[np.signedinteger], scale: float, *shape: int, axis: int = 0) -> str:
        """Dequantize a constant of random values, with a scale for each index of an axis."""
        count = shape[axis]
        parameters = self.constant(np.full(count, scale)), self.constant(np.zeros(count), dtype)
        return self.op(
            "DequantizeLinear", self.constant(self.random.integers(-63, 64, shape), dtype), *parameters, axis=axis
        )

    def convolution(self, x: str, inputs: int = CHANNELS, group: int = 1) -> str:
        weights = self.stored(np.int8, 0.01, CHANNELS, inputs // group, 3, 3)
        return self.op("Conv", x, weights, self.stored(np.int32, 0.0002, CHANNELS), pads=[1] * 4, group=group)

    def first(self) -> str:
        """The quantized output of a first convolution, which each case has: [N, CHANNELS, SIDE, SIDE]."""
        return self.qdq(self.convolution(self.qdq("x"), 3))

    def halves(self, x: str) -> tuple[str, str]:
        self.op("Split", x, axis=1, num_outputs=2)
        node = self._nodes[-1]
        node.output.append(f"{node.output[0]}b")
        return node.output[0], node.output[1]

    def tokens(self, x: str) -> str:
        return self.qdq(self.op("Reshape", x, self.constant([-1, SIDE * SIDE, CHANNELS], np.int64)))

    def fully_connected(self, bias: str | None) -> str:
        x = self.qdq(self.op("Flatten", self.qdq(self.op("GlobalAveragePool", self.first()))))
        return self.op("Gemm", x, self.stored(np.int8, 0.01, 5, CHANNELS), *([bias] if bias else []), transB=1)


Part = Callable[[Quantized], str]


def after_conv(*operators: str, zero: int, **attributes: Any) -> Part:
    """A convolution and an operator with no quantizer between them."""

    def build(made: Quantized) -> str:
        x = made.convolution(made.first())
        for kind in operators:
            bounds = [made.constant(0), made.constant(6)] if kind == "Clip" else []
            x = made.op(kind, x, *bounds, **attributes)
        return made.qdq(x, zero)

    return build


def alone(
    kind: str, *more: tuple[npt.ArrayLike | None, type], zero: int = 128, scale: float = 0.02, **attributes: Any
) -> Part:
    """An operator between quantizers, with constants as further inputs; None leaves an input out."""

    def build(made: Quantized) -> str:
        constants = ["" if value is None else made.constant(value, dtype) for value, dtype in more]
        return made.qdq(made.op(kind, made.first(), *constants, **attributes), zero, scale)

    return build


def residual(kind: str, *, quantized: bool, **attributes: Any) -> Part:
    """A convolution joined with its input, with or without a quantizer between convolution and junction."""

    def build(made: Quantized) -> str:
        x = made.first()
        branch = made.convolution(x)
        return made.qdq(made.op(kind, made.qdq(branch) if quantized else branch, x, **attributes))

    return build


def silu(where: str) -> Part:
    """x * Sigmoid(x), with quantizers between them, or around the whole, or after it alone."""

    def build(made: Quantized) -> str:
        x = made.convolution(made.first()) if where == "after" else made.first()
        gate = made.op("Sigmoid", x)
        return made.qdq(made.op("Mul", x, made.qdq(gate, 0, 1 / 255) if where == "between" else gate))

    return build


def split(made: Quantized) -> str:
    left, right = made.halves(made.first())
    return made.qdq(made.op("Add", made.qdq(left), made.qdq(right)))


def matmul(*, computed: bool, bias: bool = False) -> Part:
    def build(made: Quantized) -> str:
        x = made.tokens(made.first())
        if computed:
            factor = made.qdq(made.op("Transpose", x, perm=[0, 2, 1]))
        else:
            factor = made.stored(np.int8, 0.01, CHANNELS, 6, axis=1)
        y = made.op("MatMul", x, factor)
        return made.qdq(made.op("Add", y, made.constant(np.ones(6))) if bias else y)

    return build


def gemm(bias: str, *, quantized: bool) -> Part:
    def build(made: Quantized) -> str:
        given: str | None = None
        if bias != "none":
            given = made.constant(np.ones(5)) if bias == "float" else made.stored(np.int32, 0.0002, 5)
        found = made.fully_connected(given)
        return made.qdq(found) if quantized else found

    return build


LINEAR: dict[str, Any] = {"mode": "linear"}
SCALES = ((None, np.float32), ([1, 1, 2, 2], np.float32))
PADS = ([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
ONES, ZEROS = (np.ones(SIDE), np.float32), (np.zeros(SIDE), np.float32)
UNIT: dict[str, Any] = {"zero": 0, "scale": 1 / 255}
ALL: tuple[int, tuple[str, ...]] = (0, ())  # every layer and every operator is computed in int8

# The graph, and of each runtime: how many layers it computes in float, and which other operators.
CASES: dict[str, tuple[Part, tuple[int, tuple[str, ...]], tuple[int, tuple[str, ...]]]] = {
    "Conv": (after_conv(zero=128), ALL, ALL),
    "depthwise Conv": (lambda made: made.qdq(made.convolution(made.first(), group=CHANNELS)), ALL, ALL),
    "Conv, Relu, zero point 0": (after_conv("Relu", zero=0), ALL, ALL),
    "Conv, Relu, zero point 1": (after_conv("Relu", zero=1), (1, ()), ALL),
    "Conv, Clip, zero point 0": (after_conv("Clip", zero=0), ALL, ALL),
    "Conv, Clip, zero point 1": (after_conv("Clip", zero=1), (1, ()), ALL),
    "Conv, LeakyRelu": (after_conv("LeakyRelu", zero=128, alpha=0.1), (1, ()), ALL),
    "Conv, HardSwish": (after_conv("HardSwish", zero=128), (1, ("HardSigmoid", "Mul")), ALL),
    "Conv, Gelu": (after_conv("Gelu", zero=128), (1, ("Gelu",)), ALL),
    "Conv, SiLU": (silu("after"), (1, ("QuickGelu",)), ALL),
    "SiLU": (silu("around"), (0, ("Mul", "Sigmoid")), ALL),
    "SiLU, quantized between": (silu("between"), ALL, ALL),
    "LeakyRelu": (alone("LeakyRelu", alpha=0.1), ALL, ALL),
    "HardSwish": (alone("HardSwish"), (0, ("HardSigmoid", "Mul")), ALL),
    "Gelu": (alone("Gelu"), (0, ("Gelu",)), ALL),
    "LayerNormalization": (
        alone("LayerNormalization", ONES, ZEROS),
        (0, ("LayerNormalization",)),
        (0, ("RMS", "Subgraph")),
    ),
    "Add of quantized tensors": (residual("Add", quantized=True), ALL, ALL),
    "Add of a convolution as it is": (residual("Add", quantized=False), (1, ()), ALL),
    "Mul of quantized tensors": (residual("Mul", quantized=True), ALL, ALL),
    "Concat": (residual("Concat", quantized=True, axis=1), ALL, ALL),
    "Split": (split, ALL, ALL),
    "AveragePool": (alone("AveragePool", kernel_shape=[2, 2], strides=[2, 2]), ALL, ALL),
    "MaxPool": (alone("MaxPool", kernel_shape=[2, 2], strides=[2, 2]), ALL, ALL),
    "GlobalAveragePool": (alone("GlobalAveragePool"), ALL, ALL),
    "ReduceMean": (alone("ReduceMean", ([2, 3], np.int64)), (0, ("ReduceMean",)), ALL),
    "Resize, nearest": (alone("Resize", *SCALES, mode="nearest"), ALL, ALL),
    "Resize, linear": (alone("Resize", *SCALES, **LINEAR), (0, ("Resize",)), ALL),
    "Softmax": (alone("Softmax", axis=1, **UNIT), ALL, (0, ("Softmax", "Subgraph"))),
    "Pad": (alone("Pad", PADS), (0, ("Pad",)), (0, ("Pad", "Subgraph"))),
    "Transpose": (alone("Transpose", perm=[0, 2, 3, 1]), ALL, ALL),
    "MatMul, constant factor": (matmul(computed=False), ALL, ALL),
    "MatMul, constant factor, Add": (matmul(computed=False, bias=True), (0, ("Add",)), ALL),
    "MatMul, computed factor": (matmul(computed=True), ALL, (1, ())),
    "Gemm, no bias, float output": (gemm("none", quantized=False), ALL, ALL),
    "Gemm, int32 bias, float output": (gemm("int32", quantized=False), ALL, ALL),
    "Gemm, float bias, float output": (gemm("float", quantized=False), (1, ()), ALL),
    "Gemm, float bias": (gemm("float", quantized=True), ALL, ALL),
}


def execute(case: str, runtime: Runtime, path: Path) -> tuple[int, tuple[str, ...]]:
    """Return how many layers of a case a runtime computes in float, and the other operators that it does."""
    made = Quantized()
    model = made.model(CASES[case][0](made), classes=None, opset=20)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.ir_version = 9
    onnx.save(model, path)
    found = count_int8(runtime, path)
    return found["weighted"] - found["int8"], tuple(found["other_float"])


@pytest.mark.parametrize("case", CASES)
def test_onnxruntime_computes_in_float_what_the_table_says(case: str, tmp_path: Path) -> None:
    assert execute(case, Runtime.ONNXRUNTIME, tmp_path / "m.onnx") == CASES[case][1]


@pytest.mark.openvino
@pytest.mark.parametrize("case", CASES)
def test_openvino_computes_in_float_what_the_table_says(case: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    assert execute(case, Runtime.OPENVINO, tmp_path / "m.onnx") == CASES[case][2]
