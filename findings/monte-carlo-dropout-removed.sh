#!/bin/sh
# A network with Dropout left on (training_mode true), run many times on one image in ONNX Runtime, so that the spread
# of its scores tells how sure it is: Monte Carlo dropout.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
# Guess: only a Dropout without training_mode, or with a false one, is removed when the graph is optimized; one that is
#   on draws a new mask for each run at every level of optimization.
# Behaviour: a Dropout that stands between two nodes is removed at the default level, and at "basic", whatever its
#   training_mode says. All runs then give one answer, that of the network without dropout: the spread is 0 and every
#   image looks certain. Nothing is logged. One that reads the graph's input stays and draws, as a test of the operator
#   by itself does. With optimizations off, or EliminateDropout among disabled_optimizers, the other draws as well.
# Output seen (spread of 50 runs): between Relu and Gemm: off 2.5, basic 0, all 0, all without EliminateDropout 2.6; on
#   the graph's input: 3.5 to 3.7 at each level.
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

LEVELS = ort.GraphOptimizationLevel
WAYS = {
    "off": (LEVELS.ORT_DISABLE_ALL, []),
    "basic": (LEVELS.ORT_ENABLE_BASIC, []),
    "all": (LEVELS.ORT_ENABLE_ALL, []),
    "all but EliminateDropout": (LEVELS.ORT_ENABLE_ALL, ["EliminateDropout"]),
}
rng = np.random.default_rng(0)
x = rng.normal(size=(4, 32)).astype(np.float32)
constants = {
    "ratio": np.array(0.3, np.float32),
    "on": np.array(True),
    "head": rng.normal(size=(32, 5)).astype(np.float32),
}


def spreads(nodes):
    """Return the spread of 50 runs, by way of optimizing."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    checker.check_model(model, full_check=True)
    found = {}
    for way, (level, disabled) in WAYS.items():
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        session = ort.InferenceSession(model.SerializeToString(), options, disabled_optimizers=disabled)
        scores = np.stack([session.run(None, {"x": x})[0] for _ in range(50)])
        found[way] = float(scores.std(0).mean())
    return found


between = spreads(
    [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Dropout", ["a", "ratio", "on"], ["b"]),
        helper.make_node("Gemm", ["b", "head"], ["y"]),
    ]
)
at_input = spreads(
    [helper.make_node("Dropout", ["x", "ratio", "on"], ["b"]), helper.make_node("Gemm", ["b", "head"], ["y"])]
)
for place, found in (("between two nodes", between), ("at the graph's input", at_input)):
    print(place, {way: round(value, 2) for way, value in found.items()})

assert all(value > 0.5 for value in at_input.values()), at_input
assert between["off"] > 0.5 and between["all but EliminateDropout"] > 0.5, between
assert between["basic"] < 1e-5 and between["all"] < 1e-5, "Dropout stays where it is on now"
PY
