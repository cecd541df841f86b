#!/bin/sh
# onnxruntime.quantization.quantize_static with CalibMovingAverage, and the constant of that average.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
# Guess: as the docstring says, CalibMovingAverage follows the extremes by an exponential average, and
#   CalibMovingAverageConstant (default .01, "effective only when ... CalibMovingAverage is set to True") is its smoothing
#   factor: .01, .5 and 1 give different ranges, and so does another order of the images.
# Behaviour: all constants give the plain mean of the images' extremes, in any order. Where CalibMaxIntermediateOutputs
#   makes groups of images, which "will produce the same result", the order counts, and .01 and 1 still give the same.
#   It hurts whoever tunes the constant: ranges never change, and are those that half of the images exceed.
# Output seen (scale of the input): extremes .1526; moving average with .01, .5, 1 and reversed .0285 each, the mean of
#   the extremes; in groups of three with .01 and 1 .0278, reversed .0193.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$dir"
"$dir/venv/bin/python" - 2>"$dir/log" <<'PY' || { cat "$dir/log"; exit 1; }
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

random = np.random.default_rng(2)
weight = random.normal(0, 0.3, (16, 3, 3, 3)).astype(np.float32)
graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1] * 4)],
    "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16, 16, 16])],
    [numpy_helper.from_array(weight, "w")],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "float.onnx")
contrasts = np.exp(random.normal(0, 0.7, 32))  # some images are faint, some strong
images = [(random.normal(size=(1, 3, 16, 16)) * each).astype(np.float32) for each in contrasts]


class Images(CalibrationDataReader):
    def __init__(self, given):
        self._feeds = iter([{"x": image} for image in given])

    def get_next(self):
        return next(self._feeds, None)


def scale(given, **options):
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static("float.onnx", "int8.onnx", Images(given), **kinds, extra_options=options)
    stored = {each.name: each for each in onnx.load("int8.onnx").graph.initializer}
    found = float(numpy_helper.to_array(stored["x_scale"]))
    print(f"{found:.4f}", "reversed" if given is not images else "", options)
    return found


average, back = {"CalibMovingAverage": True}, images[::-1]
extremes = scale(images)
means = [scale(images, **average, CalibMovingAverageConstant=constant) for constant in (0.01, 0.5, 1.0)]
means.append(scale(back, **average))
groups = average | {"CalibMaxIntermediateOutputs": 3}
followed = [scale(images, **groups), scale(back, **groups), scale(images, **groups, CalibMovingAverageConstant=1.0)]
plain = sum(float(image.max() - image.min()) for image in images) / len(images) / 255
print(f"mean of the extremes: {plain:.4f}")
steady = np.ptp(means) < 1e-6 and abs(means[0] - plain) < 1e-4 and means[0] < extremes / 2
sys.exit(0 if steady and followed[0] == followed[2] != followed[1] else 1)
PY
