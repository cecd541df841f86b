#!/bin/sh
# nncf.quantize of an ONNX file that OpenVINO read: read_model beside convert_model, and NNCF's correction of biases.
# Versions: nncf 3.4.0, openvino 2026.4.1, onnx 1.23.2, numpy 2.4.6.
# Guess: read_model and convert_model give nncf.quantize the same network, so the same int8 model comes out. NNCF
#   corrects biases by default; fast_bias_correction=False, its slower and "more accurate, in general" way, changes them
#   otherwise, and disable_bias_correction=True leaves a larger error of the means.
# Behaviour: after read_model the three settings give one model, the one without correction, and nothing is said. The
#   ONNX frontend puts every bias behind a Reshape to a shape that is computed, and NNCF takes only a constant beside
#   the addition for a bias; convert_model folds the Reshape. Whether the batch is fixed makes no difference, and a file
#   of save_model keeps the Reshape. It hurts whoever quantizes an ONNX file as NNCF's and OpenVINO's pages read one, by
#   read_model, or compares quantizers so: biases are uncorrected, and fast_bias_correction=False only looks useless.
# Output seen (largest error of a channel's mean, with the correction, the slow one and none): read_model .0399 .0399
#   .0399, read again from save_model .0399 .0399 .0399, convert_model .0179 .0363 .0399.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 openvino==2026.4.1 nncf==3.4.0
cd "$dir"
"$dir/venv/bin/python" - 2>"$dir/log" <<'PY' || { cat "$dir/log"; exit 1; }
import sys

import nncf
import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(0)
shapes = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (16, 16, 3, 3), "w4": (4, 16, 1, 1)}
spread = {"w1": 0.4, "w2": 0.1, "w3": 0.1, "w4": 0.3}
weights = {name: random.normal(0, spread[name], shape) for name, shape in shapes.items()}
weights |= {f"b{name[1]}": random.normal(0, 0.3, shape[0]) for name, shape in shapes.items()}
nodes, x = [], "x"
for layer in (1, 2, 3):
    nodes.append(helper.make_node("Conv", [x, f"w{layer}", f"b{layer}"], [f"c{layer}"], f"conv{layer}", pads=[1] * 4))
    nodes.append(helper.make_node("Relu", [f"c{layer}"], [x := f"r{layer}"], f"relu{layer}"))
nodes.append(helper.make_node("Conv", [x, "w4", "b4"], ["y"], "conv4"))
graph = helper.make_graph(
    nodes,
    "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 16, 16])],
    [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "float.onnx")


def draw(count):
    return [(random.normal(size=(1, 3, 16, 16)) * s).astype(np.float32) for s in np.exp(random.normal(0, 0.5, count))]


images, others = draw(64), draw(16)
openvino.save_model(openvino.Core().read_model("float.onnx"), "float.xml", compress_to_fp16=False)
read = openvino.Core().read_model
makers = {
    "read_model": lambda: read("float.onnx"),
    "save_model, read_model": lambda: read("float.xml"),
    "convert_model": lambda: openvino.convert_model("float.onnx"),
}
settings = {
    "default": {},
    "slow": {"fast_bias_correction": False},
    "none": {"advanced_parameters": nncf.AdvancedQuantizationParameters(disable_bias_correction=True)},
}


def answer(model):
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([compiled(image)[0] for image in others])


found = {}
for name, make in makers.items():
    for kind, options in settings.items():
        quantized = answer(nncf.quantize(make(), nncf.Dataset(images), subset_size=64, **options))
        error = np.abs((quantized - answer(make())).mean(axis=(0, 2, 3))).max()
        print(f"{name}, {kind}: {error:.4f}")
        found[name, kind] = quantized


def same(name):
    return all(np.array_equal(found[name, kind], found[name, "none"]) for kind in settings)


sys.exit(0 if same("read_model") and same("save_model, read_model") and not same("convert_model") else 1)
PY
