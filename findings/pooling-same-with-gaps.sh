#!/bin/sh
# Pooling with gaps between its values (dilations) and auto_pad SAME_UPPER or SAME_LOWER, as dilated networks of
# TensorFlow are converted.
# Versions: onnxruntime 1.32.0, openvino 2026.4.1, onnx 1.23.2, numpy 2.4.6.
# Guess: SAME means that the output has the input's size (divided by the stride, rounded up), whatever the kernel is; a
#   runtime that has no padding for a kernel with gaps refuses it.
# Behaviour: ONNX Runtime pads its pools by the kernel without the gaps, though it places the values with them. The
#   output is smaller than SAME allows, all of it is shifted, and where onnx's shape inference has written sizes into
#   the file a warning is logged and the smaller answer given. Only Conv is refused. A global pool or a mean behind it
#   hides the size. With VALID, or with the pads written out, pools are right. OpenVINO's follow the standard.
# Output seen (rows and columns, of 9 x 11 by a kernel of 3 with gaps of 2): inferred and openvino 9 x 11, onnxruntime
#   MaxPool, AveragePool and LpPool 7 x 9, Conv refused; with stride 2: 5 x 6 and 4 x 5. Largest difference of
#   openvino's MaxPool from onnxruntime's with explicit pads of 2: 0.
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
from onnx import TensorProto, checker, helper, numpy_helper, shape_inference

rng = np.random.default_rng(0)
x = rng.normal(size=(1, 2, 9, 11)).astype(np.float32)
weights = numpy_helper.from_array(rng.normal(size=(2, 2, 3, 3)).astype(np.float32), "w")


def content_of(kind, **attributes):
    """Return a file with one node of this kind, its kernel 3 x 3 with gaps of 2, and its inferred output shape."""
    convolution = kind == "Conv"
    node = helper.make_node(
        kind, ["x", "w"] if convolution else ["x"], ["y"], kernel_shape=[3, 3], dilations=[2, 2], **attributes
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "h", "w"])],
        [weights] if convolution else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    checker.check_model(model)
    inferred = shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape
    return model.SerializeToString(), tuple(each.dim_value for each in inferred.dim)


def by_ort(content):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(content, options).run(None, {"x": x})[0]


def by_openvino(content):
    core = ov.Core()
    return core.compile_model(core.read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]


for stride, right, smaller in ((1, (9, 11), (7, 9)), (2, (5, 6), (4, 5))):
    for rule in ("SAME_UPPER", "SAME_LOWER"):
        for kind in ("MaxPool", "AveragePool", "LpPool"):
            content, inferred = content_of(kind, auto_pad=rule, strides=[stride, stride])
            first, second = by_ort(content).shape[2:], by_openvino(content).shape[2:]
            print(f"{kind} {rule} stride {stride}: inferred {inferred[2:]}, onnxruntime {first}, openvino {second}")
            assert inferred[2:] == second == right, "openvino or shape inference has another size"
            assert first == smaller, "onnxruntime pads otherwise now"
        written, _ = content_of("MaxPool", pads=[2, 2, 2, 2], strides=[stride, stride])
        automatic, _ = content_of("MaxPool", auto_pad=rule, strides=[stride, stride])
        apart = np.abs(by_ort(written) - by_openvino(automatic)).max()
        print(f"openvino's MaxPool beside onnxruntime's with pads written out: {apart:.2g}")
        assert apart == 0
        try:
            by_ort(content_of("Conv", auto_pad=rule, strides=[stride, stride])[0])
            raise SystemExit("Conv is not refused now")
        except Exception as refusal:
            assert "Dilation not supported" in str(refusal), refusal
PY
