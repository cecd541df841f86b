#!/bin/sh
# Element types that an ONNX file asks for in its own arithmetic, on OpenVINO's CPU plugin: casts to float16 and back,
# sums in double or int32, differences of uint8 pictures.
# Versions: openvino 2026.4.1, onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
# Guess: a Cast rounds to the type it names, as the cast to bfloat16 does; a type that the CPU plugin has no kernels for
#   is computed in a wider one or refused; integers are exact, and uint8 wraps as in ONNX Runtime, numpy and onnx's
#   reference.
# Behaviour: casts to float16 leave the values as they are, so that a file that simulates float16 to find overflows
#   finds none. Double is computed in float32. An int32 sum goes through float32 as well and loses units beyond 2^24,
#   which the pixels of one picture reach. uint8 is cut off at 0 and 255 where it should wrap: in the difference of two
#   frames every pixel that got darker is 0. The inference precision is f32 throughout.
# Output seen (onnxruntime, openvino): 70000 through float16: inf, 70000; 1.0001 through bfloat16: 1, 1; 2^24 + 1 in
#   double: +1, +0; int32 sum of 2^24, 1, 1, 1: +3, +0; uint8 1 - 100: 157, 0; 200 + 100: 44, 255.
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

core = ov.Core()
node = helper.make_node
BIG = 2**24


def both(x, nodes, result=None, **constants):
    """Return the answers of ONNX Runtime, unoptimized, and of OpenVINO, as lists of numbers."""
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    inputs = [helper.make_tensor_value_info("x", kind, x.shape)]
    outputs = [helper.make_tensor_value_info("y", result or kind, None)]
    constants = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "types", inputs, outputs, constants)
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    by_ort = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    network = core.compile_model(core.read_model(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return by_ort.ravel().tolist(), network({"x": x})[0].ravel().tolist()


def through(kind):
    return [node("Cast", ["x"], ["a"], to=kind), node("Cast", ["a"], ["y"], to=TensorProto.FLOAT)]


floats = np.array([70000, 1.0001], np.float32)
sums = np.array([BIG, 1], np.float32)
in_double = [
    node("Cast", ["x"], ["a"], to=TensorProto.DOUBLE),
    node("ReduceSum", ["a"], ["b"], keepdims=0),
    node("Sub", ["b", "big"], ["c"]),
    node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
]
counts = np.array([BIG, 1, 1, 1], np.int32)
in_int32 = [node("ReduceSum", ["x"], ["a"], keepdims=0), node("Sub", ["a", "big"], ["y"])]
pixels = np.array([1, 200], np.uint8)
hundred = np.array(100, np.uint8)
seen = {
    "through float16": both(floats, through(TensorProto.FLOAT16)),
    "through bfloat16": both(floats, through(TensorProto.BFLOAT16)),
    "double, beyond 2^24": both(sums, in_double, TensorProto.FLOAT, big=np.array(BIG, np.float64)),
    "int32, beyond 2^24": both(counts, in_int32, big=np.array(BIG, np.int32)),
    "uint8 - 100": both(pixels, [node("Sub", ["x", "h"], ["y"])], h=hundred),
    "uint8 + 100": both(pixels, [node("Add", ["x", "h"], ["y"])], h=hundred),
}
for name, (by_ort, by_openvino) in seen.items():
    print(f"{name}: onnxruntime {by_ort}, openvino {by_openvino}")
kept = floats.tolist()
assert seen["through float16"] == ([np.inf, 1.0], kept), "float16 is rounded to now"
assert seen["through bfloat16"] == ([70144.0, 1.0], [70144.0, 1.0])
assert seen["double, beyond 2^24"] == ([1.0], [0.0]), "double is exact now"
assert seen["int32, beyond 2^24"] == ([3], [0]), "int32 is exact now"
assert seen["uint8 - 100"] == ([157, 100], [0, 100]), "uint8 wraps now"
assert seen["uint8 + 100"] == ([101, 44], [101, 255]), "uint8 wraps now"
PY
