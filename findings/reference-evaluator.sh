#!/bin/sh
# onnx.reference.ReferenceEvaluator taken as the judge of what an operator should answer.
# Versions: onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6.
# Guess: slow but right; where a runtime differs from it, the runtime is wrong.
# Behaviour: for five operators of classification networks it is the evaluator that leaves the standard's text, and
#   ONNX Runtime that follows it: QuantizeLinear of a value whose quotient exceeds 2^31 gives the lowest code instead
#   of the highest; LogSoftmax takes the logarithm of a rounded softmax, so scores 110 apart give -inf; LRN and
#   LpNormalization (p=1) compute other functions (every channel but the first is left as it was; the sum is taken
#   without absolute values); BatchNormalization of opset 9 to 13, in the form for inference, normalises by a mixture
#   of its statistics and those of the batch, as in training.
# Output seen (reference, onnxruntime, exact): QuantizeLinear 0, 255, 255; LogSoftmax -inf, -110, -110; LRN of the
#   second channel 2, .75, .75; LpNormalization 1, .6, .6;
#   BatchNormalization of opset 9, of 1 and 3 with mean 0 and variance 1: 0.8, 2.8 in place of 1, 3.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import warnings

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

warnings.simplefilter("ignore")


def both(op, x, element=TensorProto.FLOAT, constants=(), opset=17, **attributes):
    """Return the answers of the reference evaluator and of ONNX Runtime."""
    x = np.array(x, np.float32)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    outputs = [helper.make_tensor_value_info("y", element, x.shape)]
    names = [f"c{i}" for i in range(len(constants))]
    initializers = [numpy_helper.from_array(value, name) for value, name in zip(constants, names, strict=True)]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], ["y"], **attributes)], "g", inputs, outputs, initializers
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString())
    return ReferenceEvaluator(model).run(None, {"x": x})[0].ravel(), session.run(None, {"x": x})[0].ravel()


# Three channels of one pixel with values 1, 2, 2 and size 3: y0 = 1 / (1 + .9 / 3 * (1 + 4)) ** .75 and so on.
squares = np.array([1 + 4, 1 + 4 + 4, 4 + 4])
trials = {
    "QuantizeLinear": (
        both("QuantizeLinear", [1e10], TensorProto.UINT8, [np.array(1, np.float32), np.array(0, np.uint8)]),
        np.array([255]),
    ),
    "LogSoftmax": (both("LogSoftmax", [[0, 110]], axis=1), np.array([-110, 0])),
    "LRN": (
        both("LRN", [[[[1]], [[2]], [[2]]]], size=3, alpha=0.9, beta=0.75, bias=1.0),
        np.array([1, 2, 2]) / (1 + 0.9 / 3 * squares) ** 0.75,
    ),
    "LpNormalization": (both("LpNormalization", [[3, -1, 1]], axis=1, p=1), np.array([3, -1, 1]) / 5),
    "BatchNormalization": (
        both(
            "BatchNormalization",
            [[[[1, 3]]]],
            constants=[np.array([value], np.float32) for value in (1, 0, 0, 1)],
            opset=9,
            epsilon=1e-9,
        ),
        np.array([1, 3]),
    ),
}
for name, ((reference, runtime), exact) in trials.items():
    print(f"{name:18} reference {reference}, onnxruntime {runtime}, exact {exact}")
    assert np.allclose(runtime, exact, atol=1e-5), name
    assert not np.allclose(reference, exact, atol=1e-2), f"the reference is right about {name} now"
PY
