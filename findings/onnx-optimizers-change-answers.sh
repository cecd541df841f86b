#!/bin/sh
# Programs that make an ONNX file smaller before it is deployed, with their default options: onnxoptimizer (the ONNX
# project's own), onnxslim and onnxsim.
# Versions: onnxoptimizer 0.4.2, onnxslim 0.1.98, onnxsim 0.8.1, onnxruntime 1.32.0 (as judge, optimizations off), onnx
#   1.23.2, numpy 2.4.6.
# Guess: the answers stay. Zero padding stays before a MaxPool, whose own padding is minus infinity; a 0 in Reshape is a
#   dimension of that Reshape's input; a factor is moved into a convolution's weights where it is one a channel.
# Behaviour: onnxoptimizer makes the zeros before a MaxPool its padding, so that border values below 0 come out where 0
#   was the largest: the stem of ResNet V2 as Keras has it (ZeroPadding2D before MaxPooling2D, no ReLU between them).
#   It joins two Reshapes without a look at the 0, which then takes the first tensor's dimension: [8,6,4] by [2,4,6,4]
#   and [0,-1] becomes [8,24], not [2,96]. onnxslim moves a factor for each column ([W]) or row ([H,1]), as a mask or
#   a window has it, into the weights as if it were one a channel, where the counts happen to be equal. onnxsim keeps
#   all of these.
# Output seen (onnxoptimizer, onnxslim, onnxsim; largest difference): zeros before MaxPool 0.89, 0, 0; Reshape twice (8,
#   24), (2, 96), (2, 96); a factor a column 0, 21, 0; a factor a channel 0, 0, 0.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 \
    onnxoptimizer==0.4.2 onnxslim==0.1.98 onnxsim==0.8.1
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxoptimizer
import onnxruntime as ort
import onnxsim
import onnxslim
from onnx import TensorProto, helper, numpy_helper, shape_inference

rng = np.random.default_rng(0)
image = rng.normal(-1, 0.3, (1, 4, 6, 6)).astype(np.float32)
windows = rng.normal(size=(8, 6, 4)).astype(np.float32)
weights = rng.normal(size=(4, 4, 3, 3)).astype(np.float32)  # answers of 4 channels, 4 rows and 4 columns
factors = rng.normal(size=4).astype(np.float32)


def network(x, nodes, **constants):
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    constants = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "part", values, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return x, shape_inference.infer_shapes(model)


def answers(model, x):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


node = helper.make_node
scaled = [node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "f"], ["y"])]
networks = {
    "zeros before MaxPool": network(
        image,
        [node("Pad", ["x", "p"], ["b"]), node("MaxPool", ["b"], ["y"], kernel_shape=[3, 3], strides=[2, 2])],
        p=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    ),
    "Reshape twice": network(
        windows,
        [node("Reshape", ["x", "s"], ["b"]), node("Reshape", ["b", "t"], ["y"])],
        s=np.array([2, 4, 6, 4]),
        t=np.array([0, -1]),
    ),
    "a factor a column": network(image, scaled, w=weights, f=factors),
    "a factor a channel": network(image, scaled, w=weights, f=factors.reshape(4, 1, 1)),
}
tools = {
    "onnxoptimizer": onnxoptimizer.optimize,
    "onnxslim": onnxslim.slim,
    "onnxsim": lambda model: onnxsim.simplify(model)[0],
}
wrong = set()
for part, (x, model) in networks.items():
    wanted = answers(model, x)
    for tool, shrink in tools.items():
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        found = answers(shrink(copy), x)
        same = found.shape == wanted.shape
        print(f"{part}, {tool}: {f'off by {abs(found - wanted).max():.2g}' if same else f'{found.shape}, not {wanted.shape}'}")
        if not same or abs(found - wanted).max() > 1e-4:
            wrong.add((part, tool))
assert wrong == {
    ("zeros before MaxPool", "onnxoptimizer"),
    ("Reshape twice", "onnxoptimizer"),
    ("a factor a column", "onnxslim"),
}, wrong
PY
