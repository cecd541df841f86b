"""What tools that rewrite ONNX files make of an int8 package: its answers, and whether OpenVINO still takes the file.

Seen with onnxslim 0.1.98, onnxsim 0.8.1, onnxruntime 1.32.0 and openvino 2026.4.1.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime import GraphOptimizationLevel as Level
from small_graphs import Builder, between_convolutions, images, ranges_seen, run_exact, run_in

from pipeline.quant import qdq
from pipeline.runtimes.base import Runtime

OPTIMIZING = [Level.ORT_ENABLE_EXTENDED, Level.ORT_ENABLE_ALL]


@pytest.fixture(scope="module")
def int8() -> onnx.ModelProto:
    """The model of a package: a residual block, a concatenation, pooling, and an activation that stays in float."""

    def part(made: Builder, x: str) -> str:
        x = made.op("Relu", x)
        x = made.op("Relu", made.op("Add", made.conv(x, 8, 8), x))
        pooled = made.op("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)
        x = made.op("HardSwish", made.op("Concat", x, pooled, axis=1))
        return made.conv(made.conv(x, 16, 48, 1), 48, 8, 1)  # the first is large enough for int8 in ONNX Runtime

    model = between_convolutions(part)
    return qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True)


def check(int8: onnx.ModelProto, rewritten: onnx.ModelProto, folder: Path) -> None:
    """The rewritten file has all quantizers and gives equal answers: to the bit in exact arithmetic and in OpenVINO."""
    before, after = (Counter(node.op_type for node in model.graph.node) for model in (int8, rewritten))
    assert after["QuantizeLinear"] == before["QuantizeLinear"]
    assert after["DequantizeLinear"] >= before["DequantizeLinear"]
    np.testing.assert_array_equal(run_exact(rewritten, images()), run_exact(int8, images()))
    for name, model in (("before", int8), ("after", rewritten)):
        onnx.save(model, folder / f"{name}.onnx")
    for runtime in (Runtime.ONNXRUNTIME, Runtime.OPENVINO):
        if runtime is Runtime.OPENVINO:
            pytest.importorskip("openvino")
        before_nc, after_nc = (run_in(runtime, folder / f"{name}.onnx", images()) for name in ("before", "after"))
        np.testing.assert_array_equal(after_nc, before_nc)


def optimized(int8: onnx.ModelProto, level: Level, folder: Path) -> Path:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(int8.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return folder / "optimized.onnx"


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made


@pytest.mark.openvino
def test_onnxslim_leaves_answers_equal(int8: onnx.ModelProto, tmp_path: Path) -> None:
    onnxslim = pytest.importorskip("onnxslim")
    check(int8, onnxslim.slim(copy(int8)), tmp_path)


@pytest.mark.openvino
def test_onnxsim_leaves_answers_equal(int8: onnx.ModelProto, tmp_path: Path) -> None:
    onnxsim = pytest.importorskip("onnxsim")
    simplified, checked = onnxsim.simplify(copy(int8))
    assert checked
    check(int8, simplified, tmp_path)


@pytest.mark.openvino
def test_onnxruntime_leaves_answers_equal_at_level_basic(int8: onnx.ModelProto, tmp_path: Path) -> None:
    check(int8, onnx.load(optimized(int8, Level.ORT_ENABLE_BASIC, tmp_path)), tmp_path)


@pytest.mark.openvino
@pytest.mark.parametrize("level", OPTIMIZING)
def test_openvino_refuses_what_onnxruntime_writes_beyond_basic(
    int8: onnx.ModelProto, level: Level, tmp_path: Path
) -> None:
    """It holds operators of ONNX Runtime's own: a file so optimized is no exchange format."""
    openvino = pytest.importorskip("openvino")
    path = optimized(int8, level, tmp_path)
    assert "com.microsoft" in {node.domain for node in onnx.load(path).graph.node}
    with pytest.raises(RuntimeError, match=r"QLinearAdd"):
        openvino.Core().compile_model(openvino.Core().read_model(str(path)), "CPU")
