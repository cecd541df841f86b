"""What ONNX Runtime's `session.x64quantprecision` does, by which packages of 8-bit weights are exact on AVX2.

Seen with onnxruntime 1.32.0: from graph optimization level EXTENDED on, int8 weights beyond 64 are stored as uint8,
whose kernels do not sum in 16 bits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import GraphOptimizationLevel as Level

OPTIMIZING = [Level.ORT_ENABLE_EXTENDED, Level.ORT_ENABLE_ALL]
IMAGE = np.random.default_rng(1).uniform(-2, 2, (2, 16)).astype(np.float32)


def model(
    activations: type[np.generic], *, explicit: bool = False, opset: int = 17, largest: int = 127
) -> onnx.ModelProto:
    """Return a matrix product of quantized tensors, between quantizers or as `explicit` QLinearMatMul."""
    weights = np.random.default_rng(0).integers(-largest, largest + 1, (16, 6)).astype(np.int8)
    weights[0, 0] = largest
    constants = {
        "w": weights,
        "s": np.float32(0.02),
        "z": np.zeros((), activations),
        "ws": np.float32(0.01),
        "wz": np.int8(0),
    }
    product = [helper.make_node("QLinearMatMul", ["q", "s", "z", "w", "ws", "wz", "s", "z"], ["r"])]
    if not explicit:
        product = [
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
            helper.make_node("MatMul", ["d", "wd"], ["m"]),
            helper.make_node("QuantizeLinear", ["m", "s", "z"], ["r"]),
        ]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            *product,
            helper.make_node("DequantizeLinear", ["r", "s", "z"], ["y"]),
        ],
        "made by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 16))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", 6))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)


def weights_type(made: onnx.ModelProto, level: Level, folder: Path, precise: str = "1") -> str:
    """Return the type of the weights that a session of a level multiplies by; its answers are exact on any CPU here."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.add_session_config_entry("session.x64quantprecision", precise)
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = Level.ORT_DISABLE_ALL
    exact = onnxruntime.InferenceSession(made.SerializeToString(), plain, providers=["CPUExecutionProvider"])
    if precise == "1" and level in OPTIMIZING:
        np.testing.assert_array_equal(session.run(None, {"x": IMAGE})[0], exact.run(None, {"x": IMAGE})[0])
    stored = onnx.load(folder / "optimized.onnx").graph.initializer
    return next(str(TensorProto.DataType.Name(each.data_type)) for each in stored if len(each.dims) == 2)


@pytest.mark.parametrize("level", OPTIMIZING)
@pytest.mark.parametrize("activations", [np.uint8, np.int8])
def test_weights_become_uint8_from_level_extended_on(
    level: Level, activations: type[np.generic], tmp_path: Path
) -> None:
    assert weights_type(model(activations), level, tmp_path) == "UINT8"
    assert weights_type(model(activations), level, tmp_path, precise="0") == "INT8"


@pytest.mark.parametrize("level", [Level.ORT_DISABLE_ALL, Level.ORT_ENABLE_BASIC])
def test_weights_stay_int8_below_level_extended(level: Level, tmp_path: Path) -> None:
    assert weights_type(model(np.uint8), level, tmp_path) == "INT8"


@pytest.mark.parametrize(("largest", "found"), [(64, "INT8"), (65, "UINT8")])
def test_weights_stay_int8_up_to_64(largest: int, found: str, tmp_path: Path) -> None:
    """Two products of at most 255 * 64 fit 16 bits."""
    assert weights_type(model(np.uint8, largest=largest), Level.ORT_ENABLE_ALL, tmp_path) == found


@pytest.mark.parametrize(("opset", "found"), [(17, "UINT8"), (20, "UINT8"), (21, "INT8")])
def test_explicit_product_is_left_out_from_opset_21_on(opset: int, found: str, tmp_path: Path) -> None:
    made = model(np.uint8, explicit=True, opset=opset)
    assert weights_type(made, Level.ORT_ENABLE_EXTENDED, tmp_path) == found


def test_explicit_product_is_refused_with_signed_activations(tmp_path: Path) -> None:
    """There is no kernel for int8 times uint8; between quantizers (above) the same sum runs."""
    with pytest.raises(Exception, match="Failed to find kernel for QLinearMatMul"):
        weights_type(model(np.int8, explicit=True), Level.ORT_ENABLE_ALL, tmp_path)
