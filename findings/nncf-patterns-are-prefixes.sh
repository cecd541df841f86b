#!/bin/sh
# NNCF's IgnoredScope(patterns=[...]): layers of an ONNX file that int8 quantization is to leave in float.
# Versions: nncf 3.4.0, onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6.
# Guess: a pattern has to match the whole name, as names=[...] does, so patterns=["conv1"] leaves out conv1.
# Behaviour: it has to match the beginning of the name (re.match). "conv1" leaves conv1, conv10 and conv11 in float,
#   "layer1" also layer10 and layer1_extra; nothing is said of it, and the check that each pattern finds something
#   passes. A pattern that fits only in the middle is an error. "conv1$" is that one layer.
# Output seen (convolutions left in float, of conv0 to conv11): names conv1: conv1; patterns conv1: conv1, conv10,
#   conv11; patterns conv1$: conv1; patterns onv1: ValidationError.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 nncf==3.4.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import logging

import nncf
import numpy as np
from onnx import TensorProto, helper, numpy_helper

nncf.set_log_level(logging.ERROR)
random = np.random.default_rng(0)
SHAPE = [1, 3, 8, 8]
nodes, weights = [], []
for index in range(12):
    name = f"conv{index}"
    nodes.append(helper.make_node("Conv", [f"x{index}", f"w{index}"], [f"c{index}"], name, pads=[1] * 4))
    nodes.append(helper.make_node("Relu", [f"c{index}"], [f"x{index + 1}"], f"relu{index}"))
    weights.append(numpy_helper.from_array(random.normal(0, 0.4, (3, 3, 3, 3)).astype(np.float32), f"w{index}"))
values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x0", "x12")]
graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
images = nncf.Dataset([{"x0": random.normal(size=SHAPE).astype(np.float32)} for _ in range(3)])


def left_in_float(**scope):
    quantized = nncf.quantize(model, images, subset_size=3, ignored_scope=nncf.IgnoredScope(**scope))
    made_by = {output: node.op_type for node in quantized.graph.node for output in node.output}
    convolutions = [node for node in quantized.graph.node if node.op_type == "Conv"]
    found = [node.name for node in convolutions if made_by.get(node.input[1]) != "DequantizeLinear"]
    print(scope, found)
    return found


assert left_in_float(names=["conv1"]) == ["conv1"]
assert left_in_float(patterns=["conv1$"]) == ["conv1"]
try:
    left_in_float(patterns=["onv1"])
    raise SystemExit("a pattern that fits in the middle of a name is taken now")
except nncf.ValidationError as error:
    print("onv1:", type(error).__name__)
found = left_in_float(patterns=["conv1"])
assert found == ["conv1", "conv10", "conv11"], "patterns match whole names now"
PY
