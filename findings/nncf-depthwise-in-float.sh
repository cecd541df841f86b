#!/bin/sh
# nncf.quantize of a network with depthwise convolutions (MobileNet, EfficientNet) from an ONNX file: read by read_model
# and by convert_model, and what OpenVINO computes of the result in int8.
# Versions: nncf 3.4.0, openvino 2026.4.1, onnx 1.23.2, numpy 2.4.6.
# Guess: weights of a depthwise convolution get one scale for each channel, whichever of the two read the file, and the
#   layer runs in int8, as the plain convolutions beside it.
# Behaviour: after read_model the weights lie behind a Reshape, and NNCF gives them a scale for each channel *and* each
#   column of the kernel. OpenVINO has no integer kernel for such weights: every depthwise layer is computed in float32
#   between conversions from and to int8, and its weights stay float32 in the file. Plain convolutions are int8; nothing
#   is said, and accuracy is as good. It hurts whoever quantizes a MobileNet for its speed: a third of its layers stay
#   float. After convert_model all is as guessed.
# Output seen (shape of the depthwise scales; precision in which first, depthwise, pointwise run, on a CPU with int8 dot
#   products): read_model [32,1,1,1,3]; u8 f32 u8; convert_model [32,1,1,1,1]; u8 u8 u8.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 openvino==2026.4.1 nncf==3.4.0
cd "$dir"
"$dir/venv/bin/python" - 2>"$dir/log" <<'PY' || { cat "$dir/log"; exit 1; }
import nncf
import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, checker, helper, numpy_helper

CHANNELS = 32
LAYERS = ("first", "depthwise", "pointwise")
rng = np.random.default_rng(0)
weights = {
    "w0": rng.normal(0, 0.2, (CHANNELS, 3, 3, 3)),
    "w1": rng.normal(0, 0.3, (CHANNELS, 1, 3, 3)),
    "w2": rng.normal(0, 0.2, (CHANNELS, CHANNELS, 1, 1)),
    **{f"b{index}": np.zeros(CHANNELS) for index in range(3)},
}
nodes, x = [], "x"
for index, name in enumerate(LAYERS):
    options = {"pads": [1] * 4} if index < 2 else {}
    if name == "depthwise":
        options["group"] = CHANNELS
    nodes.append(helper.make_node("Conv", [x, f"w{index}", f"b{index}"], [f"c{index}"], name, **options))
    x = "y" if index == 2 else f"r{index}"
    nodes.append(helper.make_node("Relu", [f"c{index}"], [x], f"relu{index}"))
graph = helper.make_graph(
    nodes,
    "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CHANNELS, 32, 32])],
    [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
checker.check_model(model)
onnx.save(model, "network.onnx")
images = [rng.normal(size=(1, 3, 32, 32)).astype(np.float32) for _ in range(20)]
core, seen = ov.Core(), {}
for way, read in (("read_model", core.read_model), ("convert_model", ov.convert_model)):
    quantized = nncf.quantize(read("network.onnx"), nncf.Dataset(images), subset_size=len(images))
    layer = next(each for each in quantized.get_ops() if each.get_type_name() == "GroupConvolution")
    scale = layer.input_value(1).get_node().input_value(1).get_shape()
    compiled, precisions = core.compile_model(quantized, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), {}
    for each in compiled.get_runtime_model().get_ops():
        facts = {key: value.astype(str) for key, value in each.get_rt_info().items() if key != "originalLayersNames"}
        if "Convolution" in facts.get("layerType", ""):
            precisions[each.get_friendly_name().split("/")[0]] = facts["runtimePrecision"]
    seen[way] = (list(scale), [precisions[name] for name in LAYERS])
    print(f"{way}: scales {seen[way][0]}, precisions {seen[way][1]}")

assert seen["read_model"][0] == [CHANNELS, 1, 1, 1, 3], "read_model: one scale a channel now"
assert seen["convert_model"][0] == [CHANNELS, 1, 1, 1, 1], seen
first, depthwise, pointwise = seen["convert_model"][1]
if depthwise in ("u8", "i8"):  # elsewhere the CPU has no int8 kernel for it
    assert seen["read_model"][1] == [first, "f32", pointwise], "read_model: the depthwise layer is int8 now"
PY
