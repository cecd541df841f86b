#!/bin/sh
# A float16 ONNX file run on ONNX Runtime's CPU provider, to see before it goes to a GPU whether float16 is enough for
# it: whether a sum or a square on the way leaves float16's range.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
# Guess: operators without float16 kernels compute in float32, and each result is rounded to float16, the type that the
#   file gives to every tensor; what exceeds 65,504 is inf from then on. With all optimizations off, certainly.
# Behaviour: nothing is rounded between the nodes. Casts to float32 and back are put around every operator, and a pair
#   that meets, back to float16 and again to float32, is taken out, optimizations or not. Only inputs, weights and
#   graph outputs are float16: 300 * 300 / 100 is 900. A file that overflows in its first block passes the comparison
#   with float32 on the CPU, more exact than float16 can be, and gives inf or NaN where float16 is computed. A Cast to
#   float16 written in the file between float32 operators does round, and so does a tensor that is made a graph output.
# Output seen, of 300: Mul by itself, then Div by 100: numpy inf, onnxruntime 900 at each level of optimization; two
#   convolutions with weights 300 and 0.01: 900; float32 with Casts: inf; the product as a graph output: inf.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
LEVELS = ort.GraphOptimizationLevel
x = np.full((1, 1, 1, 1), 300, np.float16)


def run(nodes, constants=(), kind=HALF, outputs=("y",), level=LEVELS.ORT_ENABLE_ALL):
    """Return the outputs of a graph whose input, constants and outputs have this type."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info(name, kind, ["n", "c", "h", "w"]) for name in outputs],
        [numpy_helper.from_array(np.asarray(value, dtype), name) for name, value in constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    checker.check_model(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [float(answer.ravel()[0]) for answer in session.run(None, {"x": x.astype(dtype)})]


square, part = helper.make_node("Mul", ["x", "x"], ["a"]), helper.make_node("Div", ["a", "c"], ["y"])
hundred = [("c", 100)]
levels = [LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_BASIC, LEVELS.ORT_ENABLE_ALL]
of_levels = [run([square, part], hundred, level=level)[0] for level in levels]
convolutions = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Conv", ["a", "v"], ["y"])]
of_convolutions = run(convolutions, [("w", [[[[300]]]]), ("v", [[[[0.01]]]])])[0]
casts = [
    square,
    helper.make_node("Cast", ["a"], ["h"], to=HALF),
    helper.make_node("Cast", ["h"], ["b"], to=FLOAT),
    helper.make_node("Div", ["b", "c"], ["y"]),
]
of_casts = run(casts, hundred, FLOAT)[0]
shown = run([square, part], hundred, outputs=("a", "y"))
with np.errstate(over="ignore"):
    of_numpy = float((x * x / np.float16(100)).ravel()[0])
print(f"numpy {of_numpy}; onnxruntime by level {of_levels}; convolutions {of_convolutions}; with Casts {of_casts}")
print("the product and the result, both as outputs:", shown)

assert of_numpy == np.inf
assert all(abs(value - 900) < 1 for value in (*of_levels, of_convolutions)), "intermediate values are rounded now"
assert of_casts == np.inf and shown[0] == np.inf, (of_casts, shown)
PY
