"""The highest opset and IR version that each runtime loads, and the highest of QuantizeLinear and DequantizeLinear.

Seen with onnx 1.23.2 (opset 28, IR version 14), onnxruntime 1.32.0 and openvino 2026.4.1. Packages are of opsets 17 to
27 and of IR version 10 or less (`pipeline/onnx_models/opsets.py`): each newer one shuts out runtimes.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, defs, helper, numpy_helper

RELU = [helper.make_node("Relu", ["x"], ["y"])]
PAIR = [
    helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
    helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
]
IMAGE = np.array([[1.06, -1.0]], np.float32)  # with a scale of .1 and a zero point of 3: levels 14 and, cut off, 0


def model(nodes: list[onnx.NodeProto], opset: int, ir: int = 10) -> bytes:
    graph = helper.make_graph(
        nodes,
        "made by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2))],
        [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(np.uint8(3), "zero")],
    )
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    serialized: bytes = file.SerializeToString()
    return serialized


def run_onnxruntime(file: bytes) -> list[float]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return [round(float(value), 4) for value in session.run(None, {"x": IMAGE})[0][0]]


def run_openvino(file: bytes) -> list[float]:
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(openvino.Core().read_model(file), "CPU")
    return [round(float(value), 4) for value in compiled(IMAGE)[0][0]]


def test_onnx_defines_opset_28_and_ir_version_14() -> None:
    assert (defs.onnx_opset_version(), int(onnx.IR_VERSION)) == (28, 14)


@pytest.mark.parametrize("ir", [8, 10, 14])
def test_onnxruntime_loads_ir_versions_up_to_14(ir: int) -> None:
    assert run_onnxruntime(model(RELU, 17, ir)) == [1.06, 0.0]


def test_onnxruntime_refuses_ir_version_15() -> None:
    with pytest.raises(Exception, match="Unsupported model IR version: 15, max supported IR version: 14"):
        run_onnxruntime(model(RELU, 17, 15))


@pytest.mark.parametrize("opset", [17, 21, 28])
def test_onnxruntime_loads_opsets_up_to_28(opset: int) -> None:
    assert run_onnxruntime(model(RELU, opset)) == [1.06, 0.0]


def test_onnxruntime_refuses_opset_29() -> None:
    with pytest.raises(Exception, match="Opset 29 is under development"):
        run_onnxruntime(model(RELU, 29))


@pytest.mark.parametrize("opset", [10, 13, 19, 21, 23, 24, 25, 27])
def test_onnxruntime_has_quantizers_of_opsets_10_to_27(opset: int) -> None:
    assert run_onnxruntime(model(PAIR, opset)) == [1.1, -0.3]


def test_onnxruntime_has_no_quantizers_of_opset_28() -> None:
    """Though it loads other files of that opset: a package must not be raised to what onnx defines."""
    with pytest.raises(Exception, match=r"Could not find an implementation for QuantizeLinear\(28\)"):
        run_onnxruntime(model(PAIR, 28))


@pytest.mark.openvino
@pytest.mark.parametrize(("opset", "ir"), [(17, 8), (28, 14), (29, 15)])
def test_openvino_loads_any_opset_and_ir_version(opset: int, ir: int) -> None:
    """Also such as do not exist: no error of its is to be expected where a file is too new."""
    assert run_openvino(model(RELU, opset, ir)) == [1.06, 0.0]


@pytest.mark.openvino
@pytest.mark.parametrize("opset", [10, 13, 19, 21, 23, 25, 27, 28])
def test_openvino_has_quantizers_of_opsets_10_to_28(opset: int) -> None:
    assert run_openvino(model(PAIR, opset)) == [1.1, -0.3]
