#!/bin/sh
# OpenVINO's CACHE_DIR and compile_model(path), where weights are replaced under the same name: the data file beside an
# ONNX model, the .bin beside an .xml, or a one-file model from an archive or image layer with fixed times.
# Versions: openvino 2026.4.1, onnx 1.23.2, numpy 2.4.6.
# Guess: what is cached is found by the model's content, weights included, or at least by size and time of every file
#   that makes up the model; new weights are compiled anew.
# Behaviour: it is found by path, size and time of the file that was named, and of no other. A data file or .bin of
#   retrained weights is never looked at: the server goes on answering with the old ones, without a word, as long as
#   the cache lives. So does a one-file model of equal size and time, as reproducible archives make them (all of the
#   same architecture have one size). read_model before compile_model looks at the weights.
# Output seen (answers of weights 1, then 2): without cache 1, 2; external data replaced 1, 1; .bin replaced 1, 1; one
#   file, same size and time 1, 1; one file, new time 1, 2; external data by read_model 1, 2.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 openvino==2026.4.1
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import os
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

SIZE = 64


def model(weight):
    """Each of the outputs is `weight` where all inputs are 1."""
    values = np.full((SIZE, SIZE), weight / SIZE, np.float32)
    row = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, SIZE]) for name in ("x", "y")]
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([product], "g", row[:1], row[1:], [numpy_helper.from_array(values, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def set_time(path, seconds):
    os.utime(path, (seconds, seconds))


def put_external(folder, weight):
    """Write model.onnx once, and model.data for each weight."""
    Path(folder).mkdir(exist_ok=True)
    os.chdir(folder)  # onnx.save looks for existing data here
    Path("model.data").unlink(missing_ok=True)
    graph = "model.onnx" if weight == 1 else "unused.onnx"
    onnx.save(model(weight), graph, save_as_external_data=True, location="model.data", size_threshold=0)
    set_time("model.data", 1_700_000_000 + 1000 * weight)
    os.chdir("..")
    return f"{folder}/model.onnx"


def put_ir(folder, weight):
    Path(folder).mkdir(exist_ok=True)
    onnx.save(model(weight), "float.onnx")
    name = "model" if weight == 1 else "unused"
    ov.save_model(ov.convert_model("float.onnx"), f"{folder}/{name}.xml", compress_to_fp16=False)
    if weight == 2:
        os.replace(f"{folder}/unused.bin", f"{folder}/model.bin")
    set_time(f"{folder}/model.bin", 1_700_000_000 + 1000 * weight)
    return f"{folder}/model.xml"


def put_file(folder, weight, seconds):
    Path(folder).mkdir(exist_ok=True)
    onnx.save(model(weight), f"{folder}/model.onnx")
    set_time(f"{folder}/model.onnx", seconds)
    return f"{folder}/model.onnx"


def answer(path, cache, read_first=False):
    """Answer as a process does that has just started."""
    core = ov.Core()
    if cache:
        core.set_property({"CACHE_DIR": f"{path}.cache"})
    compiled = core.compile_model(core.read_model(path) if read_first else path, "CPU")
    return round(float(compiled([np.ones((1, SIZE), np.float32)])[0][0, 0]))


seen = {
    "no cache": [answer(put_external("a", weight), cache=False) for weight in (1, 2)],
    "external data": [answer(put_external("b", weight), cache=True) for weight in (1, 2)],
    ".bin": [answer(put_ir("c", weight), cache=True) for weight in (1, 2)],
    "one file, same time": [answer(put_file("d", weight, 1_700_000_000), cache=True) for weight in (1, 2)],
    "one file, new time": [answer(put_file("e", weight, 1_700_000_000 + weight), cache=True) for weight in (1, 2)],
    "external data, read_model": [answer(put_external("f", w), cache=True, read_first=True) for w in (1, 2)],
}
for name, answers in seen.items():
    print(f"{name:26}", *answers)
new, old = [1, 2], [1, 1]
assert list(seen.values()) == [new, old, old, old, new, new], "the cache now looks at other things"
PY
