#!/bin/sh
# Pooling with ceil_mode=1 and padding, where the last window would start in the padding or reach beyond it.
# Versions: openvino 2026.4.1, onnxruntime 1.32.0, opencv-python-headless 5.0.0.93, onnx 1.23.2, numpy 2.4.6.
# Guess: all follow PyTorch: a window that would start beyond the input and its left padding is dropped, and
#   count_include_pad counts the declared padding only.
# Behaviour: ONNX Runtime and onnx's reference drop such a window; onnx's own shape inference counts it, and
#   OpenVINO's MaxPool keeps it: a whole extra row of the lowest float32, -3.4e38, which the next layer takes for
#   data. OpenCV's dnn has the row too. In AveragePool with count_include_pad=1 OpenVINO divides by the full kernel
#   where a window hangs over the padded edge.
# Output seen: MaxPool of 7 rows (kernel 2, stride 2, padding 1): inferred 5 rows, reference and onnxruntime 4,
#   openvino and OpenCV 5; AveragePool of ten ones (kernel 3, stride 2, padding 1), last value: onnxruntime 0.5,
#   openvino 0.33.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0      openvino==2026.4.1 opencv-python-headless==5.0.0.93
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import cv2
import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

core = ov.Core()


def pool(op, x, **attributes):
    """Write a model of one pooling operator; return the rows that onnx's shape inference expects of it."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, None, None])]
    node = helper.make_node(op, ["x"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1, **attributes)
    graph = helper.make_graph([node], "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.save(model, "pool.onnx")
    return model.graph.output[0].type.tensor_type.shape.dim[2].dim_value


def by_ort(x):
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns that the shape is not the inferred one
    return ort.InferenceSession("pool.onnx", options).run(None, {"x": x})[0]


def by_openvino(x):
    return core.compile_model("pool.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x])[0].copy()


def by_opencv(x):
    net = cv2.dnn.readNetFromONNX("pool.onnx")
    net.setInput(x)
    return net.forward()


x = np.arange(70, dtype=np.float32).reshape(1, 1, 7, 10)
inferred = pool("MaxPool", x, kernel_shape=[2, 2])
print(f"MaxPool, onnx's shape inference: {inferred} rows")
reference = ReferenceEvaluator("pool.onnx").run(None, {"x": x})[0]
largest = {"onnx's reference": reference, "onnxruntime": by_ort(x), "openvino": by_openvino(x), "OpenCV": by_opencv(x)}
for name, answer in largest.items():
    print(f"MaxPool, {name}: {answer.shape[2]} rows, last row {answer[0, 0, -1, 0]:.3g}")
ones = np.ones((1, 1, 9, 10), np.float32)
pool("AveragePool", ones, kernel_shape=[3, 3], count_include_pad=1)
mean = {"onnxruntime": by_ort(ones), "openvino": by_openvino(ones)}
for name, answer in mean.items():
    print(f"AveragePool, {name}: last value of a middle row {answer[0, 0, 2, -1]:.3g}")
assert inferred == 5 and [answer.shape[2] for answer in largest.values()] == [4, 4, 5, 5]
assert (largest["openvino"][0, 0, -1] < -3e38).all(), "OpenVINO's extra row is gone"
assert np.isclose(mean["onnxruntime"][0, 0, 2, -1], 1 / 2) and np.isclose(mean["openvino"][0, 0, 2, -1], 1 / 3)
PY
