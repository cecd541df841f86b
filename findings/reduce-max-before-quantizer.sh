#!/bin/sh
# The largest (or smallest) value of each channel of a float32 feature map, quantized to uint8 and read by an int8 layer.
# Versions: openvino 2026.4.1, onnxruntime 1.32.0 (as reference, all optimizations off), onnx 1.23.2, numpy 2.4.6.
# Guess: ReduceMax, then QuantizeLinear: the maximum in steps of the scale.
# Behaviour: OpenVINO's CPU plugin computes the quantizer within ReduceMax and ReduceMin, which GlobalMaxPool becomes too,
#   and keeps the maximum in uint8 before it is divided by the scale: whole numbers of 0 to 255 are left of it, and of
#   small values nothing. ReduceMean, and MaxPool over the whole map, are right.
# Output seen (dB): ReduceMax 17.1; ReduceMin 0.0; GlobalMaxPool 17.1; ReduceMean 137.7; MaxPool 140.4.
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
x = np.abs(random.normal(size=(8, 16, 12, 12))).astype(np.float32)
constants = {
    "w": random.integers(-127, 128, (4, 16, 1, 1)).astype(np.int8),
    **{"ws": np.float32(0.003), "wz": np.int8(0), "xs": np.float32(0.03), "xz": np.uint8(0)},
}
decibel = {}
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
for kind in ("ReduceMax", "ReduceMin", "GlobalMaxPool", "ReduceMean", "MaxPool"):
    reduced = {"MaxPool": {"kernel_shape": [12, 12]}, "GlobalMaxPool": {}}.get(kind, {"axes": [2, 3], "keepdims": 1})
    nodes = [
        helper.make_node(kind, ["x"], ["p"], **reduced),
        helper.make_node("QuantizeLinear", ["p", "xs", "xz"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["v"]),
        helper.make_node("Conv", ["d", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "reduce",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, "model.onnx")
    expected = onnxruntime.InferenceSession("model.onnx", options).run(None, {"x": x})[0]
    core = openvino.Core()
    found = core.compile_model("model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]
    noise = max(float(((expected - found) ** 2).sum()), 1e-30)
    decibel[kind] = 10 * np.log10((expected**2).sum() / noise)
    print(f"{kind}: {decibel[kind]:.1f} dB")
assert max(decibel["ReduceMax"], decibel["ReduceMin"], decibel["GlobalMaxPool"]) < 25
assert min(decibel["ReduceMean"], decibel["MaxPool"]) > 60
PY
