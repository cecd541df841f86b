#!/bin/sh
# Arrays in big-endian order, as tifffile.memmap and the readers of NetCDF and FITS files hand them out.
# Versions: numpy 2.4.6, onnx 1.23.2, onnxruntime 1.32.0, openvino 2026.4.1, opencv-python-headless 5.0.0.93,
#   safetensors 0.8.0.
# Guess: a library that cannot take them says so, as torch.from_numpy does; the others convert.
# Behaviour: onnx refuses; safetensors and OpenVINO's inference call convert. But ONNX Runtime (run and OrtValue),
#   openvino.Tensor and OpenCV (resize, and TIFF encoding) look at kind and size of the type only and take the bytes
#   as if they were in the CPU's order: 1.0 becomes 4.6e-41, without an error or a warning.
# Output seen: onnx refuses; safetensors right; ort.run, ort.OrtValue, openvino.Tensor, cv2.resize, cv2.imencode
#   WRONG; openvino inference right.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0      openvino==2026.4.1 opencv-python-headless==5.0.0.93 \
    safetensors==0.8.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import sys

import cv2
import numpy as np
import onnxruntime as ort
import openvino as ov
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

assert sys.byteorder == "little", "this CPU is big-endian itself"
native = np.arange(12, dtype=np.float32).reshape(3, 4)
big = native.astype(">f4")
assert np.array_equal(native, big)

value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 4]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
session = ort.InferenceSession(model)
core = ov.Core()
compiled = core.compile_model(core.read_model(model), "CPU")

ways = {
    "onnx.numpy_helper": lambda a: numpy_helper.to_array(numpy_helper.from_array(a)),
    "safetensors": lambda a: safetensors.numpy.load(safetensors.numpy.save({"a": a}))["a"],
    "ort.run": lambda a: session.run(None, {"x": a})[0],
    "ort.OrtValue": lambda a: ort.OrtValue.ortvalue_from_numpy(a).numpy(),
    "openvino inference": lambda a: compiled([a])[0],
    "openvino.Tensor": lambda a: ov.Tensor(a).data,
    "cv2.resize": lambda a: cv2.resize(a, (4, 3)),
    "cv2.imencode tiff": lambda a: cv2.imdecode(cv2.imencode(".tiff", a)[1], cv2.IMREAD_UNCHANGED),
}
seen = {}
for name, way in ways.items():
    assert np.array_equal(way(native), native), name
    try:
        seen[name] = "right" if np.array_equal(way(big), native) else "WRONG"
    except (TypeError, ValueError, RuntimeError):
        seen[name] = "refuses"
    print(f"{name:20} {seen[name]}")
wrong = sorted(name for name, verdict in seen.items() if verdict == "WRONG")
assert wrong == ["cv2.imencode tiff", "cv2.resize", "openvino.Tensor", "ort.OrtValue", "ort.run"], wrong
assert (seen["onnx.numpy_helper"], seen["safetensors"], seen["openvino inference"]) == ("refuses", "right", "right")
PY
