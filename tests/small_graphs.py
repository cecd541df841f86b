"""Networks of a few nodes, built by hand, and their answers in exact arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from pipeline.quant import placement
from pipeline.quant.attention_scores import score_inputs
from pipeline.quant.qmath import Range, max_range
from pipeline.runtimes.activations import ActivationReader
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import open_backend, place

Float32 = npt.NDArray[np.float32]

SIDE = 12  # px


class Builder:
    """A graph that grows node by node: float32 "x" [N, 3, SIDE, SIDE] to "y"; nodes are named by their operator."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, npt.NDArray[np.generic]] = {}

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        name = f"c{len(self._constants)}"
        self._constants[name] = np.asarray(value, dtype)
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        made = f"t{len(self._nodes)}"
        count = sum(node.op_type == kind for node in self._nodes)
        self._nodes.append(helper.make_node(kind, inputs, [made], f"{kind.lower()}{count}", **attributes))
        return made

    def rename_last(self, *outputs: str) -> None:
        """Name what the last node makes, which may be several tensors."""
        self._nodes[-1].output[:] = outputs

    def normal(self, *shape: int, spread: float = 1.0) -> Float32:
        return self.random.normal(0, spread, shape).astype(np.float32)

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3, **attributes: Any) -> str:
        weights = self.normal(outputs, inputs, kernel, kernel, spread=(2 / (inputs * kernel**2)) ** 0.5)
        bias = self.constant(self.normal(outputs, spread=0.3))
        return self.op("Conv", x, self.constant(weights), bias, pads=[kernel // 2] * 4, **attributes)

    def gemm(self, x: str, inputs: int, outputs: int) -> str:
        return self.op(
            "Gemm", x, self.constant(self.normal(outputs, inputs)), self.constant(self.normal(outputs)), transB=1
        )

    def clip(self, x: str, low: float | None, high: float | None) -> str:
        return self.op("Clip", x, *("" if bound is None else self.constant(bound) for bound in (low, high)))

    def pooled(self, x: str) -> str:
        return self.op("Flatten", self.op("GlobalAveragePool", x))

    def model(self, output: str, classes: int | None = 5, opset: int = 17) -> onnx.ModelProto:
        for node in self._nodes:
            node.output[:] = ["y" if name == output else name for name in node.output]
            node.input[:] = ["y" if name == output else name for name in node.input]
        graph = helper.make_graph(
            self._nodes,
            "made by hand",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 3, SIDE, SIDE))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", classes) if classes else ("N", *[None] * 3))],
            [numpy_helper.from_array(value, name) for name, value in self._constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def between_convolutions(part: Callable[[Builder, str], str]) -> onnx.ModelProto:
    """Return a network of three convolutions of 8 channels with a part of another kind after the second."""
    made = Builder()
    x = made.op("Relu", made.conv("x", 3, 8))
    x = part(made, made.conv(x, 8, 8))
    x = made.op("Relu", made.conv(x, 8, 8))
    return made.model(made.gemm(made.pooled(x), 8, 5))


def images(count: int = 16, seed: int = 3) -> Float32:
    return np.random.default_rng(seed).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


def run_exact(model: onnx.ModelProto, batch_nchw: Float32) -> Float32:
    """Return a model's output as its file says: ONNX Runtime without any optimization of the graph."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    output: Float32 = session.run(None, {model.graph.input[0].name: batch_nchw})[0]
    return output


def run_in(runtime: Runtime, path: Path, batch_nchw: Float32) -> Float32:
    with open_backend(runtime, path, batch=len(batch_nchw), placement=place(1, 1)) as backend:
        return backend.infer(batch_nchw)


def ranges_seen(model: onnx.ModelProto, batch_nchw: npt.NDArray[np.float32 | np.uint8]) -> dict[str, Range]:
    """Return the range of everything that each tensor holds which calibration observes."""
    names = [*placement.observed_tensors(model), *score_inputs(model)]
    reader = ActivationReader(model, names, threads=1)
    seen: dict[str, Range] = {name: Range(0.0, 0.0) for name in names}
    for image in batch_nchw:
        values: Mapping[str, Float32] = reader.read(image)
        for name in names:
            found = max_range(float(values[name].min()), float(values[name].max()))
            seen[name] = Range(min(seen[name].low, found.low), max(seen[name].high, found.high))
    return seen


def sqnr_db(reference: Float32, other: Float32) -> float:
    """Return the power of a reference over that of what another differs by, in dB, 200 at most."""
    signal, noise = np.square(reference, dtype=np.float64).sum(), np.square(reference - other, dtype=np.float64).sum()
    return float(10 * np.log10(signal / max(noise, signal * 1e-20)))


def kinds_of(model: onnx.ModelProto, *kinds: str) -> list[str]:
    """Return the names of a model's nodes of some operators, in graph order."""
    return [node.name for node in model.graph.node if node.op_type in kinds]
