#!/bin/sh
# The mean over the tokens of a batch [images, tokens, channels], after a ReLU, between the quantizers of an int8 network.
# Versions: openvino 2026.4.1, onnxruntime 1.32.0 (as reference, all optimizations off), onnx 1.23.2, numpy 2.4.6.
# Guess: each image gets the mean of its own tokens, as with four axes.
# Behaviour: of uint8 values OpenVINO's CPU plugin computes ReduceMean over the middle of three axes for the first image
#   alone; the others get values that have nothing to do with theirs. A test with a batch of 1 sees nothing. With a
#   fourth axis of size 1 behind them it is right.
# Output seen (dB, for each of three images): three axes 146.5 0.0 0.0; four axes 146.5 145.6 149.1.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def decibels(*shape: int) -> list[float]:
    x = np.abs(np.random.default_rng(0).normal(size=(3, *shape))).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("ReduceMean", ["d"], ["y"], axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(0.02), "s"), numpy_helper.from_array(np.uint8(0), "z")],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    expected = onnxruntime.InferenceSession(content, options).run(None, {"x": x})[0].reshape(3, -1)
    core = openvino.Core()
    model = core.compile_model(core.read_model(content, b""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    noise = np.maximum(np.square(expected - model(x)[0].reshape(3, -1)).sum(axis=1), 1e-30)
    return [round(float(each), 1) for each in 10 * np.log10(np.square(expected).sum(axis=1) / noise)]


three, four = decibels(16, 48), decibels(16, 48, 1)
print("three axes", *three)
print("four axes", *four)
assert three[0] > 100 and max(three[1:]) < 10
assert min(four) > 100
PY
