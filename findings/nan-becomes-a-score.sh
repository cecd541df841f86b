#!/bin/sh
# One NaN inside a network (a float16 overflow, a division by a zero variance, a damaged input), and what the answer
# shows.
# Versions: onnxruntime 1.32.0, openvino 2026.4.1, onnx 1.23.2, numpy 2.4.6.
# Guess: ArgMax answers the index of the NaN in both runtimes, as numpy's does; only QuantizeLinear hides the NaN.
# Behaviour: OpenVINO's Relu turns NaN into 0 and its Clip into the lower bound, QuantizeLinear gives 0 in both
#   runtimes, so that the scores of a damaged network look clean. ONNX Runtime's Relu and Clip keep NaN, but its
#   ArgMax passes over it: only a NaN in the first place is answered. TopK of the same scores ranks NaN first in ONNX
#   Runtime, so that the two disagree.
# Output seen, for the values [1, nan, 3, 2]: onnxruntime relu [1, nan, 3, 2], quantized [1, 0, 3, 2], argmax 2, top-1
#   1; openvino relu [1, 0, 3, 2], clip to -6..6 [1, -6, 3, 2], quantized [1, 0, 3, 2], argmax 2.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

x = np.array([[1, np.nan, 3, 2]], np.float32)
core = ov.Core()


def model_of(nodes, output, element=TensorProto.FLOAT, **constants):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    outputs = [helper.make_tensor_value_info(output, element, None)]
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in constants.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


node = helper.make_node
bounds = {"low": np.array(-6, np.float32), "high": np.array(6, np.float32)}
step = {"scale": np.array(1, np.float32), "zero": np.array(0, np.uint8)}
quantize = [
    node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
    node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
]
models = {
    "relu": model_of([node("Relu", ["x"], ["y"])], "y"),
    "clip": model_of([node("Clip", ["x", "low", "high"], ["y"])], "y", **bounds),
    "quantized": model_of(quantize, "y", **step),
    "argmax": model_of([node("ArgMax", ["x"], ["y"], axis=1)], "y", TensorProto.INT64),
    "top-1": model_of([node("TopK", ["x", "k"], ["v", "y"])], "y", TensorProto.INT64, k=np.array([1])),
}


def by_ort(name):
    return ort.InferenceSession(models[name]).run(None, {"x": x})[0][0].tolist()


def by_openvino(name):
    return core.compile_model(core.read_model(models[name]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x])[0][
        0
    ].tolist()


for name in models:
    print(f"{name:10} onnxruntime {by_ort(name)}, openvino {by_openvino(name)}")
assert np.isnan(by_ort("relu")[1]) and np.isnan(by_ort("clip")[1])
assert by_openvino("relu")[1] == 0, "OpenVINO's Relu keeps NaN now"
assert by_openvino("clip")[1] == -6, "OpenVINO's Clip keeps NaN now"
assert by_ort("quantized") == by_openvino("quantized") == [1, 0, 3, 2]
assert np.argmax(x) == 1 and by_ort("argmax") == [2] and by_ort("top-1") == [1]
PY
