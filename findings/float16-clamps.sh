#!/bin/sh
# onnxconverter-common's float16 conversion (float16.convert_float_to_float16, the tool that ONNX Runtime's
# documentation names) of weights between 10,000 and 65,504, which float16 holds.
# Versions: onnxconverter-common 1.16.0, onnx 1.23.2, numpy 2.4.6.
# Guess: each constant becomes the nearest float16; only what is beyond 65,504 is cut off.
# Behaviour: everything beyond 10,000 is cut off to 10,000, and what is smaller than 1e-7 is raised to 1e-7, though
#   float16 goes down to 6e-8; both with a Python warning a constant and no error. They are the defaults of
#   max_finite_val and min_positive_val. A network that divides by 60000 then divides by 10000. With
#   max_finite_val=65504 the constants are exact.
# Output seen: 20000, 60000, -30000 and 6e-08 become 10000, 10000, -10000 and 1.2e-07, with three warnings; with
#   max_finite_val=65504 and min_positive_val=5.9e-8 they stay 20000, 60000, -30000 and 6e-08.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxconverter-common==1.16.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import warnings

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnxconverter_common import float16

VALUES = [20000, 60000, -30000, 6e-8]


def constants(**options):
    graph = helper.make_graph(
        [helper.make_node("Div", ["x", "k"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(np.array(VALUES, np.float32), "k")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = float16.convert_float_to_float16(model, **options)
    return numpy_helper.to_array(made.graph.initializer[0]).astype(float).tolist(), len(said)


nearest = np.array(VALUES, np.float16).astype(float).tolist()
(usual, warned), (wide, _) = constants(), constants(max_finite_val=65504.0, min_positive_val=5.9e-8)
print("float16 holds", nearest)
print("by default", usual, "with", warned, "warnings")
print("max_finite_val=65504", wide)
assert nearest[:3] == VALUES[:3]
assert usual[:3] == [10000, 10000, -10000] and usual[3] > 1e-7, "constants are no longer cut off at 10000 by default"
assert wide == nearest
PY
