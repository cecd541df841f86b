#!/bin/sh
# onnx.version_converter, which raises an old ONNX file to an opset that a quantizer takes (13 at least for weights per
# channel): enlarged feature maps, and Hardmax, of the years 2018 and 2019.
# Versions: onnx 1.23.2, onnxruntime 1.32.0 (as judge, optimizations off), numpy 2.4.6.
# Guess: the new file answers as the old one; where an operator's meaning changed with its version, attributes that
#   express the old one are added, as is done for Softmax, or the conversion fails.
# Behaviour: Resize of opset 10 and Upsample sample at x / scale. From 11 on the default is (x + 0.5) / scale - 0.5;
#   the old one is called coordinate_transformation_mode="asymmetric", with nearest_mode="floor". The converter adds
#   neither, so that linear enlarging moves the picture by half a pixel of the result, and nearest changes for scales
#   that are no whole numbers. Hardmax flattened the axes from `axis` on, and from 13 on takes one alone; Softmax and
#   LogSoftmax, which changed in the same way, are converted rightly. The two attributes written by hand give the old
#   answers.
# Output seen (largest difference of values up to 1, Upsample 9 and Resize 10 alike): linear by 2: 0.37, by 1.75: 0.27;
#   nearest by 2: 0, by 1.75: 0.89; with the attributes 0 each; Hardmax of opset 11 1, Softmax and LogSoftmax 0.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper, version_converter

TO = 13
x = np.random.default_rng(0).uniform(0, 1, (1, 4, 8, 8)).astype(np.float32)


def model(op, opset, scale=None, **attributes):
    constants = [] if scale is None else [numpy_helper.from_array(np.array([1, 1, scale, scale], np.float32), "scales")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)]
    node = helper.make_node(op, ["x", *(constant.name for constant in constants)], ["y"], **attributes)
    graph = helper.make_graph([node], "g", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=5)
    onnx.checker.check_model(made, full_check=True)
    return made


def run(network):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(network.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def change(old, repair=False):
    """Return the largest difference of the converted file's answers, with the old attributes added or not."""
    new = version_converter.convert_version(old, TO)
    onnx.checker.check_model(new, full_check=True)
    if repair:
        (node,) = (node for node in new.graph.node if node.op_type == "Resize")
        kept = [each for each in node.attribute if each.name not in ("coordinate_transformation_mode", "nearest_mode")]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
        node.attribute.append(helper.make_attribute("nearest_mode", "floor"))
    return round(float(np.abs(run(new) - run(old)).max()), 2)


enlarged = {
    f"{op} of opset {opset}, {mode} by {scale:g}": model(op, opset, scale, mode=mode)
    for op, opset in (("Upsample", 9), ("Resize", 10))
    for mode in ("linear", "nearest")
    for scale in (2, 1.75)
}
seen = {}
for name, old in enlarged.items():
    seen[name], repaired = change(old), change(old, repair=True)
    print(f"{name}: {seen[name]}, with the attributes {repaired}")
    assert repaired == 0
for op in ("Hardmax", "Softmax", "LogSoftmax"):
    seen[op] = change(model(op, 11, axis=1))
    print(f"{op} of opset 11, axis 1: {seen[op]}")
differs = [name for name, difference in seen.items() if difference > 0.1]
expected = [name for name in enlarged if "nearest by 2" not in name] + ["Hardmax"]
assert differs == expected, f"other operators change now: {differs}"
PY
