#!/bin/sh
# PRelu with one slope for each value of the last axis: after a Linear layer over tokens, or in a channels-last network.
# Versions: openvino 2026.4.1, onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
# Guess: since opset 7 slopes are broadcast to the input as numpy does, so that a slope of shape [C] belongs to the last
#   axis, in OpenVINO as in ONNX Runtime; a runtime that knows only the old meaning, one slope for each channel of axis
#   1, would fail at once on tokens [N, T, C].
# Behaviour: OpenVINO decides by the count. As long as T and C differ the slopes are those of the last axis; where they
#   are equal (64 tokens of 64 channels, a channels-last map as high as it has channels) they are taken along axis 1.
#   A network answers rightly at one image size and wrongly at another, with no error. Slopes of the input's full rank,
#   [1, 1, C], are right always.
# Output seen (largest difference from onnxruntime): tokens [2, 6, 8] with 8 slopes 0, [2, 8, 8] 6.7; the same with
#   slopes [1, 1, 8] 0; channels-last map [1, 7, 9, 14] with 14 slopes 0, [1, 14, 9, 14] 11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, checker, helper, numpy_helper

rng = np.random.default_rng(0)


def difference(shape, slopes_shape):
    """Return the largest difference between the runtimes, and onnxruntime's from numpy's broadcasting."""
    x = rng.normal(size=shape).astype(np.float32)
    slopes = rng.normal(size=slopes_shape).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("PRelu", ["x", "slopes"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(slopes, "slopes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    content = model.SerializeToString()
    by_ort = ort.InferenceSession(content).run(None, {"x": x})[0]
    core = ov.Core()
    by_openvino = core.compile_model(core.read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]
    assert np.abs(by_ort - np.where(x < 0, x * slopes, x)).max() < 1e-5, "onnxruntime leaves the standard"
    return float(np.abs(by_ort - by_openvino).max())


seen = {
    (shape, slopes): difference(shape, slopes)
    for shape, slopes in [
        ((2, 6, 8), (8,)),
        ((2, 8, 8), (8,)),
        ((2, 8, 8), (1, 1, 8)),
        ((1, 7, 9, 14), (14,)),
        ((1, 14, 9, 14), (14,)),
    ]
}
for (shape, slopes), found in seen.items():
    print(f"input {shape}, slopes {slopes}: {found:.2g}")
    equal_counts = len(slopes) == 1 and shape[1] == slopes[0]
    assert found > 0.5 if equal_counts else found < 1e-5, "slopes are found otherwise now"
PY
