#!/bin/sh
# onnx-ir's pass for common subexpressions, which torch.onnx.export runs on what it exports, where a network draws
# random numbers: several samples of a head behind one feature vector, each with a dropout mask of its own.
# Versions: onnx-ir 1.1.0, onnx 1.23.2, onnxruntime 1.32.0 (all optimizations off), numpy 2.4.6.
# Guess: equal subexpressions are computed once, but random ones are not equal: two nodes that draw stay two, as
#   RandomNormal's do.
# Behaviour: it keeps RandomNormal, its Like form and Multinomial apart, and merges two Bernoullis, and two Dropouts in
#   training mode. Eight samples of a head become eight copies of one: their spread is 0 in each run, and every image
#   looks certain, while runs still differ from one another, so that the file seems to work.
# Output seen (nodes left of two): RandomNormal 2, RandomNormalLike 2, Multinomial 2, Bernoulli 1, Dropout 1; spread of
#   eight samples 2.2 before the pass, 1e-7 after it; mean difference of two runs 2.9 and 2.4.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnx-ir==1.1.0 onnxruntime==1.32.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

SAMPLES = 8
rng = np.random.default_rng(0)
x = rng.uniform(0, 1, (4, 32)).astype(np.float32)
constants = {
    "ratio": np.array(0.3, np.float32),
    "on": np.array(True),
    "head": rng.normal(size=(32, 5)).astype(np.float32),
}


def model_of(nodes, rank=2):
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    checker.check_model(model)
    return model


def merged(model):
    return ir.to_proto(CommonSubexpressionEliminationPass()(ir.from_proto(model)).model)


def left(kind, inputs, **attributes):
    """Return how many of two nodes of this kind the pass leaves."""
    draws = [helper.make_node(kind, inputs, [name], **attributes) for name in "ab"]
    model = merged(model_of([*draws, helper.make_node("Sub", ["a", "b"], ["y"])]))
    return sum(node.op_type == kind for node in model.graph.node)


def spread(model):
    """Return the spread of the samples, and the mean difference of two runs."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    first, second = (session.run(None, {"x": x})[0].reshape(SAMPLES, -1) for _ in range(2))
    return float(first.std(0).mean()), float(np.abs(first - second).mean())


kept = {
    "RandomNormal": left("RandomNormal", [], shape=[4]),
    "RandomNormalLike": left("RandomNormalLike", ["x"]),
    "Multinomial": left("Multinomial", ["x"], dtype=TensorProto.INT32),
    "Bernoulli": left("Bernoulli", ["x"]),
    "Dropout": left("Dropout", ["x", "ratio", "on"]),
}
print("left of two:", kept)
samples = [helper.make_node("Relu", ["x"], ["features"])]
for index in range(SAMPLES):
    samples.append(helper.make_node("Dropout", ["features", "ratio", "on"], [f"dropped{index}"]))
    samples.append(helper.make_node("Gemm", [f"dropped{index}", "head"], [f"scores{index}"]))
samples.append(helper.make_node("Concat", [f"scores{index}" for index in range(SAMPLES)], ["y"], axis=0))
before = model_of(samples)
apart, together = spread(before), spread(merged(before))
print(f"spread of samples, difference of runs: before {apart}, after {together}")

assert kept == {"RandomNormal": 2, "RandomNormalLike": 2, "Multinomial": 2, "Bernoulli": 1, "Dropout": 1}, kept
assert apart[0] > 0.3 and apart[1] > 0.3
assert together[0] < 1e-6 and together[1] > 0.3, "samples are kept apart now"
PY
