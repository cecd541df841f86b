#!/bin/sh
# Channels of a float32 feature map that a Gather reorders before a convolution, as channel shuffles are written.
# Versions: openvino 2026.4.1, onnxruntime 1.32.0 (as reference, all optimizations off), onnx 1.23.2, numpy 2.4.6.
# Guess: the answers of ONNX Runtime, whatever the order is.
# Behaviour: OpenVINO moves the order into the weights of the convolution and takes its inverse: an order that is its own
#   inverse (reversed channels, four groups of four) is right, any other gives other answers. With the axis counted from
#   the end, -3 in place of 1, the Gather stays and all orders are right.
# Output seen (dB): axis 1: reversed 131.1, two groups -2.1; axis -3: reversed 131.3, two groups 131.4.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(0)
x = random.normal(size=(4, 16, 12, 12)).astype(np.float32)
weights = random.normal(size=(8, 16, 3, 3)).astype(np.float32)
orders = {"reversed": np.arange(16)[::-1], "two groups": np.arange(16).reshape(2, 8).T.reshape(-1)}
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
decibel = {}
for axis in (1, -3):
    for name, order in orders.items():
        graph = helper.make_graph(
            [
                helper.make_node("Gather", ["x", "order"], ["shuffled"], axis=axis),
                helper.make_node("Conv", ["shuffled", "weights"], ["y"]),
            ],
            "shuffle",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16, 12, 12])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [
                numpy_helper.from_array(np.ascontiguousarray(order, np.int64), "order"),
                numpy_helper.from_array(weights, "weights"),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, "model.onnx")
        expected = onnxruntime.InferenceSession("model.onnx", options).run(None, {"x": x})[0]
        core = openvino.Core()
        found = core.compile_model("model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]
        noise = max(float(((expected - found) ** 2).sum()), 1e-30)
        decibel[axis, name] = 10 * np.log10((expected**2).sum() / noise)
        print(f"axis {axis}, {name}: {decibel[axis, name]:.1f} dB")
assert decibel[1, "two groups"] < 25
assert min(decibel[1, "reversed"], decibel[-3, "reversed"], decibel[-3, "two groups"]) > 60
PY
