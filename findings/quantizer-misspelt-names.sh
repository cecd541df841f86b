#!/bin/sh
# onnxruntime.quantization.quantize_static with a misspelt node, operator or option.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
# Guess: a node that is not in the graph, an operator that ONNX does not have and an option that does not exist are
#   errors, or warnings at least, as NNCF's IgnoredScope has it.
# Behaviour: nothing is said of any. A misspelt nodes_to_exclude quantizes the layer that was to stay in float; a
#   misspelt nodes_to_quantize or op_types_to_quantize ("conv") quantizes nothing, and the float file is written as
#   the result; extra_options that do not exist have no effect. Calibration runs to the end in each case.
# Output seen (QuantizeLinear nodes, log lines above INFO): as it should be 3, 0; exclude conv2 2, 0; exclude conv_2
#   3, 0; quantize conv_2 0, 0; op type conv 0, 0; extra_options ActivationSymmetric 4, 0, ActivationSymetric 3, 0.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import logging

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static

ort.set_default_logger_severity(3)
random = np.random.default_rng(0)
graph = helper.make_graph(
    [
        helper.make_node("Conv", ["x", "w1"], ["c"], "conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], "relu1"),
        helper.make_node("Conv", ["r", "w2"], ["y"], "conv2", pads=[1] * 4),
    ],
    "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])],
    [
        numpy_helper.from_array(random.normal(size=(4, inputs, 3, 3)).astype(np.float32), name)
        for name, inputs in (("w1", 3), ("w2", 4))
    ],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "float.onnx")


class Images(CalibrationDataReader):
    def __init__(self):
        noise = np.random.default_rng(1)
        self._images = iter([{"x": noise.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(4)])

    def get_next(self):
        return next(self._images, None)


class Count(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        # Its usual advice to run quant_pre_process first is no answer to the arguments.
        if "pre-processing" not in record.getMessage():
            self.lines.append(record.getMessage())


said = Count()
logging.getLogger().addHandler(said)


def quantize(name, **arguments):
    said.lines.clear()
    quantize_static("float.onnx", "int8.onnx", Images(), **arguments)
    model = onnx.load("int8.onnx")
    number = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    points = {
        each.name: int(numpy_helper.to_array(each).ravel()[0])
        for each in model.graph.initializer
        if each.name.endswith("zero_point")
    }
    print(f"{name}: {number} QuantizeLinear, {len(said.lines)} warnings")
    return number, len(said.lines), points


usual = quantize("as it should be")
assert quantize("nodes_to_exclude conv2", nodes_to_exclude=["conv2"])[0] < usual[0]
assert quantize("nodes_to_exclude conv_2", nodes_to_exclude=["conv_2"]) == usual, "a misspelt node is noticed now"
for arguments in ({"nodes_to_quantize": ["conv_2"]}, {"op_types_to_quantize": ["conv"]}):
    assert quantize(str(arguments), **arguments)[:2] == (0, 0), "a misspelt node or operator is noticed now"
right = quantize("extra_options ActivationSymmetric", extra_options={"ActivationSymmetric": True})
wrong = quantize("extra_options ActivationSymetric", extra_options={"ActivationSymetric": True})
assert right[2] != usual[2] and wrong == usual, "an unknown option is noticed now"
PY
