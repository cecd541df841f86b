#!/bin/sh
# Saving an ONNX model with external data a second time under the same names, as a repeated build does.
# Versions: onnx 1.23.2, onnx-ir 1.1.0, numpy 2.4.6.
# Guess: the data file is written anew, like the model file beside it.
# Behaviour: onnx.save means to refuse (FileExistsError), but looks for the data file in the current folder, while it
#   writes in the model's. Called from elsewhere it finds nothing and appends: the new model file points behind the
#   old weights, and the data file grows by its whole size with each save. Answers stay right. The other way round, an
#   unrelated file of that name in the current folder stops the first save. onnx_ir.save replaces the file.
# Output seen (bytes after one, two, three saves): onnx 262144, 524288, 786432; onnx_ir 262144, 262144, 262144; from
#   the model's own folder: FileExistsError; with a file of that name elsewhere: FileExistsError.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 onnx==1.23.2 onnx-ir==1.1.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
from onnx import TensorProto, helper, numpy_helper

weights = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)


def make_model():
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 256])] for name in "xy")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", inputs, outputs, [numpy_helper.from_array(weights, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def save(path):
    """Save by onnx; return the size of the data file, or the name of the error."""
    try:
        onnx.save(make_model(), path, save_as_external_data=True, location="weights.bin")
    except FileExistsError as error:
        return type(error).__name__
    assert np.array_equal(numpy_helper.to_array(onnx.load(path).graph.initializer[0]), weights)
    return Path(path).with_name("weights.bin").stat().st_size


for folder in ("one", "two", "three"):
    Path(folder).mkdir()
sizes = {"onnx": [], "onnx_ir": []}
for _ in range(3):
    sizes["onnx"].append(save("one/a.onnx"))
    onnx_ir.save(onnx_ir.from_proto(make_model()), "two/b.onnx", external_data="b.bin")
    sizes["onnx_ir"].append(Path("two/b.bin").stat().st_size)
print(sizes)
os.chdir("one")
again, elsewhere = save("a.onnx"), save("../three/c.onnx")
print(f"from the model's own folder: {again}; a new model in another folder: {elsewhere}")
assert sizes["onnx_ir"] == [weights.nbytes] * 3
assert sizes["onnx"] == [weights.nbytes * n for n in (1, 2, 3)], "onnx.save replaces the data file now"
assert again == elsewhere == "FileExistsError"
PY
