#!/bin/sh
# onnxruntime.quantization.quantize_static with CalibrationMethod.Entropy: ranges of activations.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
# Guess: Entropy looks for the range whose distribution of values loses least in 8 bits, as TensorRT's calibration does,
#   so it cuts off one value of 100 among 49,151 others of N(0, 1), and its scales are smaller than MinMax's. Where its
#   histogram is too coarse for that, an extra option makes it finer.
# Behaviour: Entropy gives MinMax's scales, to the bit, after more time and memory. Its histogram has 128 bins, its
#   candidates start at 128 quantized bins, and all images are counted at once, so that the histogram never grows: one
#   candidate is left, the whole range. quantize_static passes no option on that could change it (num_bins and
#   CalibNumBins are ignored without a word). create_calibrator, which quantize_static calls, takes num_bins: with 2048
#   bins the same images give a range up to 6.6 in place of 100. It hurts whoever compares the three methods and finds
#   that entropy calibration buys nothing, or relies on it to cut off outliers.
# Output seen (scales of input, ReLU and output): MinMax, Entropy, Entropy with num_bins, Entropy with CalibNumBins all
#   0.408 0.411 0.710; upper end of the input's range by create_calibrator: 128 bins 100.0, 2048 bins 6.6.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$dir"
"$dir/venv/bin/python" - 2>"$dir/log" <<'PY' || { cat "$dir/log"; exit 1; }
import contextlib
import io
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.calibrate import create_calibrator

random = np.random.default_rng(1)
graph = helper.make_graph(
    [
        helper.make_node("Conv", ["x", "w1"], ["c"], "conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], "relu1"),
        helper.make_node("Conv", ["r", "w2"], ["y"], "conv2", pads=[1] * 4),
    ],
    "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16, 16, 16])],
    [
        numpy_helper.from_array(random.normal(0, (3 * inputs) ** -0.5, (16, inputs, 3, 3)).astype(np.float32), name)
        for name, inputs in (("w1", 3), ("w2", 16))
    ],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "float.onnx")
images = random.normal(size=(64, 1, 3, 16, 16)).astype(np.float32)
images[5, 0, 0, 3, 3] = 100  # one of 49,152 values


class Images(CalibrationDataReader):
    def __init__(self):
        self._feeds = iter([{"x": image} for image in images])

    def get_next(self):
        return next(self._feeds, None)


def quantize(method, **options):
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_static(
            "float.onnx",
            "int8.onnx",
            Images(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
            extra_options=options,
        )
    stored = {each.name: each for each in onnx.load("int8.onnx").graph.initializer}
    scales = tuple(float(numpy_helper.to_array(stored[f"{name}_scale"])) for name in "xry")
    print(method, options, *(f"{scale:.3f}" for scale in scales))
    return scales


def upper_end(**options):
    with contextlib.redirect_stdout(io.StringIO()):
        calibrator = create_calibrator(
            "float.onnx", None, "augmented.onnx", CalibrationMethod.Entropy, extra_options=options
        )
        calibrator.collect_data(Images())
        found = float(np.ravel(calibrator.compute_data()["x"].range_value[1])[0])
    print("create_calibrator", options, f"{found:.1f}")
    return found


extremes = quantize("MinMax")
same = [quantize("Entropy", **options) == extremes for options in ({}, {"num_bins": 2048}, {"CalibNumBins": 2048})]
sys.exit(0 if all(same) and upper_end() == 100 and upper_end(num_bins=2048) < 10 else 1)
PY
