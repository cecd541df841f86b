#!/bin/sh
# onnxruntime.quantization.quantize_static(per_channel=True) of a model of opset 11.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
# Guess: DequantizeLinear has an axis since opset 13, so the quantizer raises the opset to 13, as it raises those below
#   11, or refuses per_channel; what it writes can be loaded by the same release.
# Behaviour: it ends without an error and writes a model of opset 11 whose DequantizeLinear has an axis. ONNX Runtime
#   refuses to load it, and so does onnx.checker; quant_pre_process, which the log recommends, changes nothing. per_channel
#   alone makes the difference: without it the file runs. It hurts whoever quantizes a file of 2020, of which many are
#   kept: the fault shows where the file is deployed.
# Output seen: per tensor: opset 11, loads; per channel: opset 11, INVALID_GRAPH; per channel after quant_pre_process:
#   opset 11, INVALID_GRAPH; per channel of the same model as opset 13: loads.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 sympy
cd "$dir"
"$dir/venv/bin/python" - 2>"$dir/log" <<'PY' || { cat "$dir/log"; exit 1; }
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

random = np.random.default_rng(0)
weight = random.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32)
graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1] * 4), helper.make_node("Relu", ["c"], ["y"], "relu")],
    "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, 16, 16])],
    [numpy_helper.from_array(weight, "w")],
)
for opset in (11, 13):
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, f"float{opset}.onnx")
quant_pre_process("float11.onnx", "prepared11.onnx")


class Images(CalibrationDataReader):
    def __init__(self):
        noise = np.random.default_rng(1)
        self._feeds = iter([{"x": noise.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(4)])

    def get_next(self):
        return next(self._feeds, None)


def loads(source, per_channel):
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(source, "int8.onnx", Images(), **kinds, per_channel=per_channel)
    opset = next(each.version for each in onnx.load("int8.onnx").opset_import if each.domain == "")
    try:
        onnxruntime.InferenceSession("int8.onnx", providers=["CPUExecutionProvider"])
    except Exception as error:
        print(f"{source}, per_channel={per_channel}: opset {opset}, {str(error)[:120]}")
        return False
    print(f"{source}, per_channel={per_channel}: opset {opset}, loads")
    return True


found = [loads(*each) for each in (("float11.onnx", False), ("float13.onnx", True))]
refused = [not loads(*each) for each in (("float11.onnx", True), ("prepared11.onnx", True))]
sys.exit(0 if all(found) and all(refused) else 1)
PY
