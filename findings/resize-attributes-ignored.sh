#!/bin/sh
# ONNX Resize (opset 18 and later) with antialias=1, or with keep_aspect_ratio_policy, in OpenVINO.
# Versions: openvino 2026.4.1, onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6, Pillow 13.0.0.
# Guess: OpenVINO computes the two attributes, or refuses the operator as it does other Resize variants.
# Behaviour: it accepts the model, drops both attributes and answers. A preprocessing graph that shrinks a picture by
#   an antialiased Resize (torch's antialias=True, Pillow's BILINEAR) runs without the filter; "not_larger" stretches
#   the picture to the given size, so even the shape of the result differs. half_pixel_symmetric, in contrast, is
#   refused.
# Output seen: antialias: onnxruntime within 1 step of Pillow, OpenVINO equal to antialias=0 (up to 75 steps away);
#   not_larger of 40 x 80 into 20 x 20: onnxruntime 10 x 20, OpenVINO 20 x 20.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 Pillow==13.0.0 onnx==1.23.2 onnxruntime==1.32.0      openvino==2026.4.1
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, checker, helper, numpy_helper
from PIL import Image

picture = np.random.default_rng(0).integers(0, 256, (40, 80), dtype=np.uint8)
x = picture.astype(np.float32)[None, None]
core = ov.Core()


def resize_model(**attributes):
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear", axes=[2, 3], **attributes)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, None, None])]
    sizes = numpy_helper.from_array(np.array([20, 20]), "sizes")
    graph = helper.make_graph([node], "g", inputs, outputs, [sizes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()


def both(**attributes):
    """Return the answers of ONNX Runtime and of OpenVINO."""
    model = resize_model(**attributes)
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return (
        ort.InferenceSession(model).run(None, {"x": x})[0],
        core.compile_model(core.read_model(model), "CPU", options)([x])[0].copy(),
    )


def distance(a, b):
    return float(np.abs(a - b).max())


pillow = np.asarray(Image.fromarray(picture).resize((20, 20), Image.BILINEAR)).astype(np.float32)
plain = both()
filtered = both(antialias=1, exclude_outside=1)  # at the edges Pillow uses the weights inside the picture only
print(f"antialias=1, onnxruntime to Pillow: {distance(filtered[0][0, 0], pillow):.2f} steps")
print(f"antialias=1, openvino to Pillow: {distance(filtered[1][0, 0], pillow):.2f} steps")
print(f"openvino, antialias=1 to antialias=0: {distance(filtered[1], plain[1]):.2f} steps")
kept = both(keep_aspect_ratio_policy="not_larger")
print("not_larger:", kept[0].shape, "in onnxruntime,", kept[1].shape, "in openvino")
try:
    both(coordinate_transformation_mode="half_pixel_symmetric")
    refused = False
except RuntimeError:
    refused = True
print("half_pixel_symmetric refused by openvino:", refused)
assert distance(filtered[0][0, 0], pillow) <= 1 and distance(plain[0], plain[1]) < 0.01
assert distance(filtered[1], plain[1]) == 0 and distance(filtered[1][0, 0], pillow) > 30
assert kept[0].shape == (1, 1, 10, 20) and kept[1].shape == (1, 1, 20, 20) and refused
PY
