#!/bin/sh
# ONNX operators of image classifiers in MNN, converted by its mnnconvert.
# Versions: mnn 3.6.1, onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6.
# Guess: mnnconvert keeps what the ONNX standard says of an operator, or refuses it, as it refuses others.
# Behaviour: five forms are converted and answer something else, without a word:
#   - auto_pad=SAME_LOWER of Conv and MaxPool, as in old zoos of models, pads like SAME_UPPER;
#   - Softmax without an axis of an opset before 13 (over all axes but the first) runs along one axis;
#   - Resize of mode "cubic" has other values, by as much as the signal itself;
#   - QuantizeLinear and DequantizeLinear of uint8 shift everything by 128 levels and exchange the first two axes, while
#     the file loads and runs: not what activations in uint8, ONNX Runtime's usual ones, stand for.
#   SAME_UPPER, Softmax of opset 13 and linear Resize are right.
# Output seen, largest difference to onnxruntime (the signal is within 3): conv SAME_LOWER 14, SAME_UPPER 0; max pool
#   SAME_LOWER 1.1; softmax of opset 11 0.7, of 13 0; resize cubic 3.2, linear 0; uint8 pair (1, 3, 9, 9) becomes
#   (3, 1, 9, 9), and of one channel 3.84, which is 128 scales of 0.03.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    mnn==3.6.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$dir"
PATH="$dir/venv/bin:$PATH" "$dir/venv/bin/python" - 2> messages.log <<'PY' || { cat messages.log; exit 1; }
import subprocess

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
import MNN.expr as expr
import MNN.nn as nn

rng = np.random.default_rng(0)
image = rng.normal(size=(1, 3, 9, 9)).astype(np.float32)
grey = image[:, :1]
negative = -np.abs(image) - 1
weight = rng.normal(size=(4, 3, 2, 2)).astype(np.float32)
twice = np.array([1, 1, 2, 2], np.float32)
level = {"scale": np.float32(0.03), "zero": np.uint8(117)}
node = helper.make_node
pair = [node("QuantizeLinear", ["x", "scale", "zero"], ["a"]), node("DequantizeLinear", ["a", "scale", "zero"], ["y"])]


def conv(auto_pad):
    return [node("Conv", ["x", "weight"], ["y"], auto_pad=auto_pad, strides=[2, 2])]


def pool(auto_pad):
    return [node("MaxPool", ["x"], ["y"], auto_pad=auto_pad, kernel_shape=[2, 2], strides=[2, 2])]


def resize(mode):
    return [node("Resize", ["x", "", "twice"], ["y"], mode=mode)]


CASES = {
    "conv SAME_LOWER": (conv("SAME_LOWER"), {"weight": weight}, image, 17),
    "conv SAME_UPPER": (conv("SAME_UPPER"), {"weight": weight}, image, 17),
    "pool SAME_LOWER": (pool("SAME_LOWER"), {}, negative, 17),
    "pool SAME_UPPER": (pool("SAME_UPPER"), {}, negative, 17),
    "softmax of opset 11": ([node("Softmax", ["x"], ["y"])], {}, image, 11),
    "softmax of opset 13": ([node("Softmax", ["x"], ["y"])], {}, image, 13),
    "resize cubic": (resize("cubic"), {"twice": twice}, image, 17),
    "resize linear": (resize("linear"), {"twice": twice}, image, 17),
    "uint8 pair": (pair, level, image, 17),
    "uint8 pair, one channel": (pair, level, grey, 17),
}


def answers(nodes, constants, x, opset):
    """Return what onnxruntime and MNN answer to x."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, "model.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    right = ort.InferenceSession("model.onnx", options).run(None, {"x": x})[0]
    convert = ["mnnconvert", "-f", "ONNX", "--modelFile", "model.onnx", "--MNNModel", "model.mnn", "--bizCode", "x"]
    subprocess.run(convert, check=True, capture_output=True)
    given = expr.const(np.ascontiguousarray(x), list(x.shape), expr.NCHW)
    found = nn.load_module_from_file("model.mnn", ["x"], ["y"]).forward([given])[0]
    return right, expr.convert(found, expr.NCHW).read().copy()


seen = {}
for name, case in CASES.items():
    right, found = answers(*case)
    same_shape = right.shape == found.shape
    seen[name] = round(float(np.abs(right - found).max()), 2) if same_shape else found.shape
    print(f"{name}: {seen[name]}")

for name in ("conv SAME_UPPER", "pool SAME_UPPER", "softmax of opset 13", "resize linear"):
    assert seen[name] == 0, name
assert seen["conv SAME_LOWER"] > 3 and seen["pool SAME_LOWER"] > 0.5 and seen["softmax of opset 11"] > 0.3, seen
assert seen["resize cubic"] > 1 and seen["uint8 pair"] == (3, 1, 9, 9), seen
assert seen["uint8 pair, one channel"] >= 3.8, seen
PY
