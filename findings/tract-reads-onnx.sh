#!/bin/sh
# ONNX operators in tract, the inference engine in Rust, through its Python package.
# Versions: tract 0.23.9, onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
# Guess: an operator that tract takes is computed as the ONNX standard says, attributes included; one that it does not
#   have is refused, as Upsample, LpPool or blocked quantization are.
# Behaviour: of 100 operators tried these are taken and answer something else, without a word:
#   - Swish (opset 24) drops alpha: every alpha is 1;
#   - Celu with alpha other than 1 leaves out the factor alpha, so that its slope breaks at 0;
#   - GlobalLpPool gives the root of the mean in place of that of the sum: 12 times too small on 12 x 12 places, p = 2;
#   - Softplus is log(1 + exp(x)), infinite from 89 on, where the answer is x;
#   - LogSoftmax is the logarithm of a rounded softmax: of logits 110 apart it is -inf, so that a cross-entropy or
#     a sum of log-probabilities over views is infinite.
#   Swish and Celu with alpha 1, Elu with any, Softmax of the same logits and Mish of large values are right.
# Output seen (tract, onnxruntime): Swish(-3), alpha 0.3: -0.142, -0.867; Celu(-3), alpha 0.3: -1, -0.3; GlobalLpPool of
#   1, -2, 3, 4: 2.74, 5.48; Softplus(100): inf, 100; LogSoftmax of 0, 110: -inf, -110; the last five 0 apart.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 tract==0.23.9
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime as ort
import tract
from onnx import TensorProto, checker, helper


def answers(kind, x, opset=18, **attributes):
    """Return the answers of tract and of ONNX Runtime for one node of this kind."""
    x = np.array(x, np.float32)
    graph = helper.make_graph(
        [helper.make_node(kind, ["x"], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"d{axis}" for axis in range(x.ndim)])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    checker.check_model(model)
    onnx.save(model, "model.onnx")
    by_tract = tract.onnx().load("model.onnx").into_model().into_runnable().run([x])[0].to_numpy()
    by_ort = ort.InferenceSession("model.onnx").run(None, {"x": x})[0]
    print(f"{kind} {attributes}: tract {by_tract.ravel()}, onnxruntime {by_ort.ravel()}")
    return by_tract.ravel(), by_ort.ravel()


values = [[-3, -1, -0.2, 0.5, 4]]
logits = [[0, 110]]
same = [
    answers("Swish", values, 24, alpha=1.0),
    answers("Celu", values, 13, alpha=1.0),
    answers("Elu", values, alpha=0.3),
    answers("Softmax", logits, axis=1),
    answers("Mish", [[-3, 100, 300]]),
]
assert all(np.allclose(first, second, rtol=1e-4, atol=1e-6) for first, second in same)

by_tract, by_ort = answers("Swish", values, 24, alpha=0.3)
assert np.allclose(by_tract, same[0][1], rtol=1e-4) and not np.allclose(by_tract, by_ort, rtol=0.1), "alpha counts now"
by_tract, by_ort = answers("Celu", values, 13, alpha=0.3)
assert np.allclose(by_tract[:3] * 0.3, by_ort[:3], rtol=1e-3) and np.allclose(by_tract[3:], by_ort[3:])
by_tract, by_ort = answers("GlobalLpPool", [[[[1, -2], [3, 4]]]], p=2)
assert abs(by_tract[0] * 2 - by_ort[0]) < 1e-5, "it is the root of the sum now"
by_tract, by_ort = answers("Softplus", [[80, 100]])
assert by_tract[1] == np.inf and by_ort[1] == 100 and abs(by_tract[0] - 80) < 1e-4, "Softplus is finite now"
by_tract, by_ort = answers("LogSoftmax", logits, axis=1)
assert by_tract[0] == -np.inf and by_ort[0] == -110, "LogSoftmax is finite now"
PY
