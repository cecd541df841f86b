#!/bin/sh
# Static quantization by ONNX Runtime with CalibrationMethod.MinMax and CalibMaxIntermediateOutputs, the option that
# bounds how much calibration keeps in memory.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
# Guess: the scales are those of a calibration without the option: extremes are merged each time the bound is reached,
#   and its documentation promises the same result.
# Behaviour: each time the bound is reached what was collected is thrown away unmerged. Only the samples after the last
#   multiple of the bound count, and nothing says so; where their number is a multiple of it, calibration fails with
#   "No data is collected". Whoever calibrates on 1000 images with a bound of 16 gets the ranges of the last eight.
# Output seen (scale of an input that reaches 100 once, in the first of 10 samples, and 1 in all others): without the
#   option 0.3961; bound of 4: 0.0078; of 20: 0.3961; of 5: ValueError: No data is collected.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import logging

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, quantize_static

logging.disable(logging.WARNING)
rng = np.random.default_rng(0)
samples = [np.clip(rng.normal(size=(1, 8)), -1, 1).astype(np.float32) for _ in range(10)]
for sample in samples:
    sample[0, :2] = -1, 1
samples[0][0, 1] = 100

weight = numpy_helper.from_array(rng.normal(size=(8, 4)).astype(np.float32), "w")
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", 8), ("y", 4)))
graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], "g", [x], [y], [weight])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "float32.onnx")


class Samples(CalibrationDataReader):
    def __init__(self):
        self.rest = iter(samples)

    def get_next(self):
        values = next(self.rest, None)
        return None if values is None else {"x": values}


def scale_with(bound):
    options = {} if bound is None else {"CalibMaxIntermediateOutputs": bound}
    try:
        quantize_static(
            "float32.onnx", "int8.onnx", Samples(), calibrate_method=CalibrationMethod.MinMax, extra_options=options
        )
    except ValueError as err:
        return f"ValueError: {err}"
    model = onnx.load("int8.onnx")
    quantizer = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == quantizer.input[1])
    return round(float(numpy_helper.to_array(scale)), 4)


found = {bound: scale_with(bound) for bound in (None, 4, 20, 5)}
print(found)
wanted = {None: 0.3961, 4: 0.0078, 20: 0.3961, 5: "ValueError: No data is collected."}
if found != wanted:
    raise SystemExit(f"the behaviour changed: expected {wanted}")
PY
