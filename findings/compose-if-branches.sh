#!/bin/sh
# Joining two ONNX files (onnx.compose.merge_models with prefixes) and cutting a part out of one (onnx.utils.
# extract_model), where a network has an If: an optional crop, or an exit on the way.
# Versions: onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6.
# Guess: both follow what branches read of the graph around them; ONNX has allowed it since version 1.
# Behaviour: neither does. add_prefix renames tensors of the outer graph and what nodes of it read, and the branches'
#   own, but not an outer name where a branch reads it: the file reads a tensor that no node makes. extract_model
#   collects nodes by the inputs of each, and leaves out those that only a branch reads. Nodes without branches are
#   right in both.
# Output seen: as made: 6; add_prefix: checker and runtime refuse it ("k" or "r" is not output of any previous nodes);
#   extract_model: refused by its own checker; the same network without If: 6 and 6.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, compose, helper, numpy_helper


def value(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])


def network(branches):
    """y = k * relu(x), by an If whose branches read r and k of the graph around them, or without it."""
    product = helper.make_node("Mul", ["r", "k"], ["y"])
    if branches:
        left = helper.make_graph([helper.make_node("Mul", ["r", "k"], ["t"])], "then", [], [value("t")])
        right = helper.make_graph([helper.make_node("Add", ["r", "k"], ["e"])], "else", [], [value("e")])
        product = helper.make_node("If", ["c"], ["y"], then_branch=left, else_branch=right)
    constants = {"c": np.array(True), "k": np.array([3], np.float32)}
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"]), product],
        "g",
        [value("x")],
        [value("y")],
        [numpy_helper.from_array(constant, name) for name, constant in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return float(session.run(None, {session.get_inputs()[0].name: np.array([2], np.float32)})[0][0])


def extracted(model):
    onnx.save(model, "whole.onnx")
    onnx.utils.extract_model("whole.onnx", "part.onnx", ["x"], ["y"])
    return onnx.load("part.onnx")


def outcome(change, branches):
    try:
        return run(change(network(branches)))
    except Exception as error:  # several types, of the checker and of the runtime
        reason = " ".join(str(error).split())
        return reason[reason.find("topologically sorted") :][:115]


ort.set_default_logger_severity(4)
seen = {
    (name, branches): outcome(change, branches)
    for name, change in (
        ("as made", lambda model: model),
        ("add_prefix", lambda model: compose.add_prefix(model, "first_")),
        ("extract_model", extracted),
    )
    for branches in (False, True)
}
for (name, branches), found in seen.items():
    print(f"{name}, {'with' if branches else 'without'} If: {found}")
right = [seen[key] for key in seen if key != ("add_prefix", True) and key != ("extract_model", True)]
assert right == [6.0] * 4
for name in ("add_prefix", "extract_model"):
    assert "previous nodes" in str(seen[name, True]), f"{name} follows what branches read now"
PY
