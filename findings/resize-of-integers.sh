#!/bin/sh
# ONNX Resize of integers in ONNX Runtime: in models of quantize_static, and in graphs that take uint8 pixels.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
# Guess: the interpolated value is rounded to the nearest integer, as Pillow, OpenCV and OpenVINO round it, in every
#   mode and for both signs; so quant_format=QOperator, which resizes integers, is as good as QDQ, which resizes floats.
# Behaviour: mode "linear" cuts the fraction off. uint8 loses half a level on average, int8 is cut towards zero. A model
#   in the QOperator format has this bias behind every Resize; in the QDQ format, from the same calibration, it has none.
#   With antialias=1, "linear" and "cubic" alike, every negative int8 becomes 0: half of a symmetric range is gone,
#   without a word.
# Output seen, as the mean of the answer minus that of float32, in levels: uint8 -0.48, and never above 0; a convolution
#   and a Resize quantized as QOperator -0.68, as QDQ -0.01. int8 with antialias: -100 everywhere becomes 0, 100 stays.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$dir"
"$dir/venv/bin/python" - 2>quantizer.log <<'PY' || { cat quantizer.log; exit 1; }
import numpy as np
import onnx
import onnxruntime as ort
from onnx import checker, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

rng = np.random.default_rng(0)
CONSTANTS = {
    "scales": np.array([1, 1, 1.75, 1.75], np.float32),
    "weight": rng.normal(0, 0.1, (4, 3, 3, 3)).astype(np.float32),
}


def model_of(nodes, x, channels):
    """Return the model of these nodes from x, with the constants that they read, to y."""
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", kind, [1, channels, None, None])],
        [numpy_helper.from_array(value, name) for name, value in CONSTANTS.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    checker.check_model(model)
    return model


def run(model, x):
    content = model if isinstance(model, str) else model.SerializeToString()
    return ort.InferenceSession(content).run(None, {"x": x})[0].astype(np.float64)


def resize(source="x", **attributes):
    return helper.make_node("Resize", [source, "", "scales"], ["y"], **{"mode": "linear", **attributes})


pixels = rng.integers(0, 256, (1, 1, 8, 8), dtype=np.uint8)
real = pixels.astype(np.float32)
of_pixels = run(model_of([resize()], pixels, 1), pixels) - run(model_of([resize()], real, 1), real)
print(f"uint8: mean {of_pixels.mean():.2f}, from {of_pixels.min():.2f} to {of_pixels.max():.2f}")

constants = {}
for mode in ("linear", "cubic"):
    for value in (-100, 100):
        flat = np.full((1, 1, 8, 8), value, np.int8)
        answer = run(model_of([resize(mode=mode, antialias=1)], flat, 1), flat)
        constants[f"{mode} of {value}"] = np.unique(answer).tolist()
print("int8, antialias=1:", constants)


class Images(CalibrationDataReader):
    def __init__(self, images):
        self.images = iter(images)

    def get_next(self):
        return next(({"x": image} for image in self.images), None)


images = [rng.normal(size=(1, 3, 16, 16)).astype(np.float32) for _ in range(8)]
network = [
    helper.make_node("Conv", ["x", "weight"], ["a"], pads=[1, 1, 1, 1]),
    helper.make_node("Relu", ["a"], ["r"]),
    resize("r"),
]
onnx.save(model_of(network, images[0], 4), "float32.onnx")
exact = run("float32.onnx", images[0])
biases = {}
for form in (QuantFormat.QDQ, QuantFormat.QOperator):
    quantize_static("float32.onnx", "int8.onnx", Images(images), quant_format=form, activation_type=QuantType.QUInt8)
    level = exact.max() / 255
    biases[form.name] = float((run("int8.onnx", images[0]) - exact).mean() / level)
print("mean error in levels:", {name: round(bias, 2) for name, bias in biases.items()})

assert of_pixels.mean() < -0.4 and of_pixels.max() < 0.001, "uint8 is rounded"
assert constants == {f"{mode} of {v}": [max(v, 0)] for mode in ("linear", "cubic") for v in (-100, 100)}, constants
assert abs(biases["QDQ"]) < 0.1 and biases["QOperator"] < -0.4, biases
PY
