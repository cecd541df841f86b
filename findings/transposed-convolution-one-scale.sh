#!/bin/sh
# onnxruntime.quantization.quantize_static(per_channel=True) of a transposed convolution with groups: a depthwise one
# that enlarges a feature map, or one of two groups.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
# Guess: one scale for each output channel, as for Conv with groups and for ConvTranspose without.
# Behaviour: one scale for each place along axis 1 of the weights, which holds the output channels of a single group.
#   All groups share these; a depthwise layer has one scale for all of its channels, so per_channel changes nothing.
#   Channels whose weights are small beside those of others are rounded to 0 and come out empty. It is not said, and
#   the depthwise Conv beside it, of the same weights, has a scale for each channel.
# Output seen, of 8 channels with weights from 0.01 to 10 (scales; largest level of each channel): Conv depthwise 8, all
#   127; ConvTranspose without groups 8, all 127; of two groups 4, levels 2 2 3 2 127 127 127 127; depthwise 1, levels
#   0 0 1 3 7 15 54 127.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$dir"
"$dir/venv/bin/python" - 2>log <<'PY' || { cat log; exit 1; }
import numpy as np
import onnx
from onnx import TensorProto, checker, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

CHANNELS = 8
rng = np.random.default_rng(0)
sizes = 10.0 ** np.linspace(-2, 1, CHANNELS)  # of the weights, by output channel


class Images(CalibrationDataReader):
    def __init__(self):
        self.images = iter([rng.normal(size=(1, CHANNELS, 6, 6)).astype(np.float32) for _ in range(4)])

    def get_next(self):
        return next(({"x": image} for image in self.images), None)


def quantized(kind, group, weights):
    """Return the scales and the int8 weights of one layer, quantized per channel."""
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "w"], ["y"], "layer", group=group)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CHANNELS, None, None])],
        [numpy_helper.from_array(weights.astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    onnx.save(model, "float32.onnx")
    quantize_static(
        "float32.onnx",
        "int8.onnx",
        Images(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    constants = {each.name: numpy_helper.to_array(each) for each in onnx.load("int8.onnx").graph.initializer}
    scales, levels = constants["w_scale"], np.abs(constants["w_quantized"].astype(int)).max(axis=(2, 3))
    largest = levels.max(axis=0 if group == 1 else 1)
    print(f"{kind}, {group} groups: {scales.size} scales, largest levels {largest}")
    return scales.size, levels


def weights(*shape):
    return rng.uniform(-1, 1, shape)


by_first = sizes[:, None, None, None]
depthwise = quantized("Conv", CHANNELS, weights(CHANNELS, 1, 3, 3) * by_first)
whole = quantized("ConvTranspose", 1, weights(CHANNELS, CHANNELS, 3, 3) * sizes[None, :, None, None])
halves = np.repeat(sizes.reshape(2, 1, 4), 4, axis=1).reshape(CHANNELS, 4)[:, :, None, None]
two = quantized("ConvTranspose", 2, weights(CHANNELS, 4, 3, 3) * halves)
transposed = quantized("ConvTranspose", CHANNELS, weights(CHANNELS, 1, 3, 3) * by_first)

assert depthwise[0] == CHANNELS and (depthwise[1] == 127).all() and whole[0] == CHANNELS
assert two[0] == 4 and transposed[0] == 1, "groups have scales of their own now"
assert (transposed[1].ravel()[:2] == 0).all() and transposed[1].ravel()[-1] == 127, transposed
PY
