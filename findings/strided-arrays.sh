#!/bin/sh
# numpy views that are not in C order (a transpose, a Fortran-ordered array, a crop) given to libraries that store
# them.
# Versions: numpy 2.4.6, safetensors 0.8.0, ncnn 1.0.20261020, onnx 1.23.2, simplejpeg 1.9.0.
# Guess: each library copies such an array into C order, or raises as simplejpeg does.
# Behaviour: safetensors' numpy saver writes the memory of a transposed or Fortran-ordered array as it lies and puts
#   the view's shape beside it, so that loading gives the right shape with the elements in another order. ncnn's Mat
#   does the same with a numpy view, and from_pixels with a crop of an image. Nothing is said. onnx copies, simplejpeg
#   raises.
# Output seen: safetensors transpose WRONG, Fortran order WRONG; ncnn Mat Fortran order WRONG, from_pixels crop WRONG;
#   onnx right; simplejpeg refuses.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 safetensors==0.8.0 ncnn==1.0.20261020      onnx==1.23.2 simplejpeg==1.9.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import ncnn
import numpy as np
import safetensors.numpy
import simplejpeg
from onnx import numpy_helper

rows = np.arange(12, dtype=np.float32).reshape(3, 4)
image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
cube = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
RGB = ncnn.Mat.PixelType.PIXEL_RGB


def by_safetensors(a):
    return safetensors.numpy.load(safetensors.numpy.save({"a": a}))["a"]


def by_from_pixels(a):
    return np.array(ncnn.Mat.from_pixels(a, RGB, a.shape[1], a.shape[0])).transpose(1, 2, 0)


trials = [
    ("safetensors, transpose", by_safetensors, rows.T),
    ("safetensors, Fortran order", by_safetensors, np.asfortranarray(rows)),
    ("ncnn Mat, Fortran order", lambda a: np.array(ncnn.Mat(a)), np.asfortranarray(cube)),
    ("ncnn from_pixels, crop", by_from_pixels, image[5:20, 10:30]),
    ("onnx, transpose", lambda a: numpy_helper.to_array(numpy_helper.from_array(a)), rows.T),
    ("simplejpeg, Fortran order", simplejpeg.encode_jpeg, np.asfortranarray(image)),
]
seen = []
for name, way, array in trials:
    try:
        result = way(array)
        assert result.shape == array.shape and np.array_equal(way(np.ascontiguousarray(array)), array), name
        verdict = "right" if np.array_equal(result, array) else "WRONG"
    except ValueError:
        verdict = "refuses"
    print(f"{name:27} {verdict}")
    seen.append(verdict)
assert seen == ["WRONG"] * 4 + ["right", "refuses"], seen
PY
