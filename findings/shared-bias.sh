#!/bin/sh
# One convolution's weights and bias used at two places with inputs of different size (a siamese network, a head
# applied to several levels of a pyramid), quantized after training by ONNX Runtime and by NNCF.
# Versions: onnxruntime 1.32.0, nncf 3.4.0, onnx 1.23.2, numpy 2.4.6.
# Guess: both tools see that the two inputs have different scales and store the bias twice.
# Behaviour: ONNX Runtime does so in the QDQ form. In the QOperator form it stores one int32 bias with the scale of
#   the input met first; the other adds a bias that is wrong by the ratio of the scales. NNCF corrects the bias of
#   layer after layer and writes each correction to the one shared constant, so that a layer gets the other's
#   correction too; without bias correction it is right. None of them warns.
# Output seen (dB of the first and second branch): QDQ 36.5, 35.6; QOperator 36.5, 6.5; NNCF 16.7, 35.9; NNCF without
#   bias correction 37.1, 36.1.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 nncf==3.4.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import logging

import nncf
import numpy as np
import onnx
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

nncf.set_log_level(logging.ERROR)
logging.disable(logging.WARNING)
rng = np.random.default_rng(0)
SHAPE = [1, 8, 16, 16]
images = [{"x": rng.normal(size=SHAPE).astype(np.float32)} for _ in range(30)]


class Images(CalibrationDataReader):
    def __init__(self):
        self.rest = iter(images)

    def get_next(self):
        return next(self.rest, None)


def two_branches():
    """y1 = conv(x, w) + b; y2 = conv(50 x, w) + b."""
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["y1"], name="first", **conv),
        helper.make_node("Mul", ["x", "k"], ["louder"], name="louder"),
        helper.make_node("Conv", ["louder", "w", "b"], ["y2"], name="second", **conv),
    ]
    w = (rng.normal(size=(8, 8, 3, 3)) / 8).astype(np.float32)
    constants = {"w": w, "b": rng.normal(0, 0.5, 8).astype(np.float32), "k": np.array(50, np.float32)}
    info = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x", "y1", "y2")}
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [info["x"]], [info["y1"], info["y2"]], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def answers(model):
    """Run the file in onnx's own arithmetic, so that no CPU's kernels take part."""
    return ReferenceEvaluator(model).run(None, images[0])


def decibels(quantized):
    pairs = zip(wanted, answers(quantized), strict=True)
    return [round(float(10 * np.log10((w**2).mean() / ((w - a) ** 2).mean())), 1) for w, a in pairs]


model = two_branches()
onnx.save(model, "float.onnx")
wanted = answers(model)
seen = {}
for form in (QuantFormat.QDQ, QuantFormat.QOperator):
    quantize_static("float.onnx", "int8.onnx", Images(), quant_format=form, op_types_to_quantize=["Conv"])
    seen[form.name] = decibels(onnx.load("int8.onnx"))
uncorrected = AdvancedQuantizationParameters(disable_bias_correction=True)
seen["NNCF"] = decibels(nncf.quantize(model, nncf.Dataset(images)))
seen["NNCF, uncorrected"] = decibels(nncf.quantize(model, nncf.Dataset(images), advanced_parameters=uncorrected))
for tool, pair in seen.items():
    print(f"{tool:18}", *pair)
assert min(seen["QDQ"] + seen["NNCF, uncorrected"]) > 30
assert seen["QOperator"][0] > 30 and seen["QOperator"][1] < 20, "QOperator now stores two biases"
assert seen["NNCF"][0] < 25 and seen["NNCF"][1] > 30, "NNCF now corrects a bias of its own for each layer"
PY
