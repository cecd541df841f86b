#!/bin/sh
# NNCF's quantize() with the same images in batches of 1, 8 and 32, as a validation loader hands them out.
# Versions: nncf 3.4.0, onnxruntime 1.32.0, openvino 2026.4.1, onnx 1.23.2, numpy 2.4.6.
# Guess: the ranges of activations belong to the images: with all of them in the statistics (subset_size covers them) they
#   are the same for each batch size, to the last digit or within a few percent, as weights and calibration code see to
#   it elsewhere (ONNX Runtime's calibrators).
# Behaviour: a range is the mean over batches of the lowest and of the highest value of each batch. With one image in a
#   batch it is that of an average image and cuts off what brighter ones reach; the larger the batch, the nearer it
#   comes to the extreme of all. Where images differ in contrast the step of every layer doubles between 1 and 32, for
#   better or worse, and two runs of one script differ by the loader's batch size. Not a word of it is logged for such
#   a network.
# Output seen (step of the input's quantizer; over that of batches of 1): batches of 1 0.045; of 8 1.7 times; of 32 2.0
#   times; all in one, whose extremes are those of all images, 2.3 times; the same of the OpenVINO model; no warning.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 nncf==3.4.0
cd "$dir"
"$dir/venv/bin/python" - 2>"$dir/log" <<'PY' || { cat "$dir/log"; exit 1; }
import logging

import nncf
import numpy as np
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

IMAGES = 256
rng = np.random.default_rng(0)
contrast = rng.uniform(0.2, 3, (IMAGES, 1, 1, 1))
images = (contrast * rng.normal(size=(IMAGES, 3, 16, 16))).astype(np.float32)
weights = {"w": 0.3 * rng.normal(size=(8, 3, 3, 3)), "v": rng.normal(size=(5, 8))}
nodes = [
    helper.make_node("Conv", ["x", "w"], ["a"], "convolution"),
    helper.make_node("Relu", ["a"], ["b"], "relu"),
    helper.make_node("GlobalAveragePool", ["b"], ["c"], "pool"),
    helper.make_node("Flatten", ["c"], ["d"], "flatten"),
    helper.make_node("Gemm", ["d", "v"], ["y"], "classifier", transB=1),
]
said = []
logging.getLogger("nncf").addHandler(type("Heard", (logging.Handler,), {"emit": lambda _, line: said.append(line)})())


def network():
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def batches(size):
    return [images[start : start + size] for start in range(0, IMAGES, size)]


def step_by_onnx(size):
    made = nncf.quantize(network(), nncf.Dataset(batches(size), lambda batch: {"x": batch}), subset_size=IMAGES // size)
    constants = {each.name: numpy_helper.to_array(each) for each in made.graph.initializer}
    first = next(node for node in made.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
    return float(constants[first.input[1]])


def step_by_openvino(size):
    model = ov.Core().read_model(network().SerializeToString())
    made = nncf.quantize(model, nncf.Dataset(batches(size)), subset_size=IMAGES // size)
    quantizers = [each for each in made.get_ops() if each.get_type_name() == "FakeQuantize"]
    first = next(each for each in quantizers if each.input_value(0).get_node().get_type_name() == "Parameter")
    low, high = (float(first.input_value(port).get_node().data.ravel()[0]) for port in (1, 2))
    return (high - low) / (first.get_attributes()["levels"] - 1)


for way in (step_by_onnx, step_by_openvino):
    steps = {size: way(size) for size in (1, 8, 32, IMAGES)}
    ratios = {size: step / steps[1] for size, step in steps.items()}
    print(way.__name__, ", ".join(f"{size}: {steps[size]:.3f} ({ratio:.2f}x)" for size, ratio in ratios.items()))
    assert 1.4 < ratios[8] < ratios[32] < ratios[IMAGES], "ranges do not depend on the batch size now"
warnings = [line.getMessage() for line in said if line.levelno >= logging.WARNING]
print("warnings:", warnings)
assert not warnings, "it is said now"
PY
