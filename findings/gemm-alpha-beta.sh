#!/bin/sh
# Gemm with alpha or beta other than 1 (torch.addmm with alpha= or beta=, scaled residuals, heads of old frameworks),
# quantized by onnxruntime.quantization.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
# Guess: the bias counts beta times, as before; what the integer operator QGemm, which has no beta, cannot express stays
#   float or is folded into the constants.
# Behaviour: the bias is quantized with a scale that has beta in it, and beta at the node is set to 1. In the QDQ form
#   that scale is read back: the bias counts once, whatever beta was. ONNX Runtime fuses the same file into QGemm,
#   which takes the bias in the scale of the products, so that it counts 1/beta times; as it does in the QOperator
#   form, where alpha multiplies it as well. A runtime and the same one without optimizations then disagree on one
#   file, and neither is right. Weights and alpha 1, beta 1, and a bias left out, are right.
# Output seen (how often the bias counts; float, QDQ unoptimized, QDQ, QOperator): alpha 1, beta 1: 1, 1, 1, 1; beta
#   0.25: 0.25, 1, 3.97, 3.97; beta 4: 4, 1, 0.25, 0.25; alpha 2, beta 1: 1, 1, 1, 2.
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
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

logging.disable(logging.WARNING)
rng = np.random.default_rng(0)
ROWS, SIZE = 8, 32
batches = [{"x": rng.uniform(-1, 1, (ROWS, SIZE)).astype(np.float32)} for _ in range(20)]
weight = (rng.uniform(-1, 1, (SIZE, SIZE)) / 4).astype(np.float32)
bias = np.linspace(0.02, 0.2, SIZE, dtype=np.float32)


class Batches(CalibrationDataReader):
    def __init__(self):
        self.rest = iter(batches)

    def get_next(self):
        return next(self.rest, None)


def save_float(alpha, beta):
    """Write y = alpha x w + beta b."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [ROWS, SIZE]) for name in ("x", "y")]
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=alpha, beta=beta)
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), "float.onnx")


def count_bias(path, alpha, optimized=True):
    """Return by how many times the bias the answers exceed alpha x w, by least squares over all batches."""
    options = ort.SessionOptions()
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    rest = [session.run(None, batch)[0] - alpha * batch["x"] @ weight for batch in batches]
    return round(float(np.mean(rest, axis=(0, 1)) @ bias / (bias @ bias)), 2)


seen = {}
for alpha, beta in ((1.0, 1.0), (1.0, 0.25), (1.0, 4.0), (2.0, 1.0)):
    save_float(alpha, beta)
    counts = [count_bias("float.onnx", alpha)]
    quantize_static("float.onnx", "qdq.onnx", Batches(), quant_format=QuantFormat.QDQ)
    counts += [count_bias("qdq.onnx", alpha, optimized=False), count_bias("qdq.onnx", alpha)]
    quantize_static("float.onnx", "qoperator.onnx", Batches(), quant_format=QuantFormat.QOperator)
    counts.append(count_bias("qoperator.onnx", alpha))
    print(f"alpha {alpha:g}, beta {beta:g}: float {counts[0]}, QDQ unoptimized {counts[1]}", end=", ")
    print(f"QDQ {counts[2]}, QOperator {counts[3]}")
    seen[alpha, beta] = counts
expected = {(1, 1): [1, 1, 1, 1], (1, 0.25): [0.25, 1, 4, 4], (1, 4): [4, 1, 0.25, 0.25], (2, 1): [1, 1, 1, 2]}
for case, counts in seen.items():
    assert np.allclose(counts, expected[case], rtol=0.2), f"alpha and beta {case} now give {counts}"
PY
