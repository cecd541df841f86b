#!/bin/sh
# The file that safetensors' save_file leaves behind: who may read it, and what becomes of a file that was there before.
# Versions: safetensors 0.8.0, numpy 2.4.6, onnx 1.23.2.
# Guess: it is opened for writing as by numpy.savez, torch.save or onnx.save: a new file has the permissions that the
#   umask leaves (0644 mostly); a file that was there keeps its own; a symbolic link is followed to the file behind it.
# Behaviour: a temporary file that only its owner may read is written beside it and renamed. Every checkpoint is 0600,
#   whatever the umask, and one that a group could read and write is 0600 after the next save: the server's user,
#   or a container with another one, cannot open the new weights. A link (model.safetensors to a file on a volume) is
#   replaced by the weights themselves, on the link's disk; the file behind it stays as it was, and who reads it goes on
#   with the old weights. A second name (hard link) keeps them too.
# Output seen (umask 022): new file: numpy 644, onnx 644, safetensors 600; a file of 664 saved over: numpy 664, onnx 664,
#   safetensors 600; a link stays and its target is new: numpy yes, onnx yes, safetensors no.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 safetensors==0.8.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import os
from pathlib import Path

import numpy as np
import onnx
import safetensors.numpy
from onnx import helper, numpy_helper

os.umask(0o022)
weights = np.arange(6, dtype=np.float32).reshape(2, 3)
graph = helper.make_graph([], "weights", [], [], [numpy_helper.from_array(weights, "w")])
ways = {
    "numpy": (".npz", lambda path: np.savez(path, w=weights)),
    "onnx": (".onnx", lambda path: onnx.save(helper.make_model(graph), path)),
    "safetensors": (".safetensors", lambda path: safetensors.numpy.save_file({"w": weights}, path)),
}


def mode(path):
    return f"{path.stat().st_mode & 0o777:o}"


seen = {}
for name, (suffix, save) in ways.items():
    new, shared, link, target = (Path(stem + suffix) for stem in ("new", "shared", "link", "volume"))
    save(new)
    shared.touch()
    shared.chmod(0o664)
    save(shared)
    target.touch()
    link.symlink_to(target)
    save(link)
    seen[name] = mode(new), mode(shared), link.is_symlink() and target.stat().st_size > 0
    print(f"{name}: new {seen[name][0]}, 664 saved over {seen[name][1]}, link followed: {seen[name][2]}")
    assert link.read_bytes()[:8] == new.read_bytes()[:8]
assert seen["numpy"] == seen["onnx"] == ("644", "664", True), seen
assert seen["safetensors"] == ("600", "600", False), "safetensors keeps permissions or links now"
PY
