#!/bin/sh
# Softmax of ONNX opsets 11 and 12 over an axis that is not the last one, in OpenVINO: an attention map or a
# fully-convolutional head, as exported with torch.onnx's opset of those years.
# Versions: openvino 2026.4.1, onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
# Guess: up to opset 12 Softmax normalises over `axis` and everything behind it, taken as one; from 13 on over `axis`
#   alone. OpenVINO's reader knows of that, as it does for LogSoftmax and Hardmax.
# Behaviour: for opsets 7 to 10 and from 13 on it is right, LogSoftmax and Hardmax always; Softmax of 11 and 12 is
#   computed as that of 13. Opset 11 only allowed negative axes: the meaning changed with 13. Raising a file to opset
#   13 by onnx's version converter first gives the right answers.
# Output seen (largest difference from onnxruntime, axes 1, 2 and 3 of four): Softmax of opset 10: 0, 0, 0; 11: 0.80,
#   0.84, 0; 12: the same; 13: 0, 0, 0; LogSoftmax and Hardmax of 11: 0, 0, 0; Softmax of 11 converted to 13: 0, 0, 0.
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
from onnx import TensorProto, helper, version_converter

SHAPE = [1, 6, 4, 4]
x = np.random.default_rng(0).normal(0, 2, SHAPE).astype(np.float32)
core = ov.Core()


def normalised(kind, opset, axis):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in "xy"]
    graph = helper.make_graph([helper.make_node(kind, ["x"], ["y"], axis=axis)], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


def in_onnxruntime(model):
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def in_openvino(model):
    read = core.read_model(model.SerializeToString())
    return core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]


def differences(kind, opset, change=lambda model: model):
    models = [normalised(kind, opset, axis) for axis in (1, 2, 3)]
    found = [float(abs(in_onnxruntime(model) - in_openvino(change(model))).max()) for model in models]
    print(f"{kind} of opset {opset}:", ", ".join(f"{each:.2g}" for each in found))
    return found


for opset in (7, 10, 13):
    assert max(differences("Softmax", opset)) < 1e-5
for kind in ("LogSoftmax", "Hardmax"):
    assert max(differences(kind, 11)) < 1e-4
wrong = [differences("Softmax", opset) for opset in (11, 12)]
print("converted to 13, ", end="")
assert max(differences("Softmax", 11, lambda model: version_converter.convert_version(model, 13))) < 1e-5
for first, second, last in wrong:
    assert min(first, second) > 0.5 and last < 1e-5, "OpenVINO reads Softmax of opsets 11 and 12 otherwise now"
PY
