#!/bin/sh
# A colour PNG that carries a gAMA chunk, as many editors write it beside sRGB, read as grey by OpenCV.
# Versions: opencv-python-headless 5.0.0.93, Pillow 13.0.0, numpy 2.4.6.
# Guess: OpenCV ignores gAMA, as Pillow does; reading in grey differs from converting afterwards by one step at most.
# Behaviour: reading in colour ignores the chunk. Reading in grey hands the conversion to libpng, which applies the
#   gamma to weigh the colours in linear light: the same pixels give another grey in two files that differ in this
#   chunk only. Photographs of the same subject, some with the chunk and some without, so get two preprocessings.
# Output seen (steps of 255): colour 0 with and without; grey against cvtColor 1 without gAMA, 67 with gAMA 45455.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 Pillow==13.0.0 opencv-python-headless==5.0.0.93
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import io
import struct

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def png(gamma):
    """Return the picture as PNG bytes; `gamma` is the chunk's value (100,000 times the exponent) or None."""
    chunks = PngImagePlugin.PngInfo()
    if gamma is not None:
        chunks.add(b"gAMA", struct.pack(">I", gamma))
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", pnginfo=chunks)
    return out.getvalue()


def steps(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


wanted = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
seen = {}
for gamma in (None, 45455):
    data = png(gamma)
    assert (b"gAMA" in data) == (gamma is not None)
    code = np.frombuffer(data, np.uint8)
    colour = steps(cv2.imdecode(code, cv2.IMREAD_COLOR_RGB), pixels)
    grey = steps(cv2.imdecode(code, cv2.IMREAD_GRAYSCALE), wanted)
    pillow = steps(np.asarray(Image.open(io.BytesIO(data)).convert("L")), wanted)
    print(f"gAMA {gamma}: OpenCV colour {colour}, OpenCV grey {grey}, Pillow grey {pillow}")
    seen[gamma] = (colour, grey, pillow)
assert seen[None][0] == seen[45455][0] == 0
assert seen[None][1] <= 1 and seen[None][2] <= 1 and seen[45455][2] <= 1
assert seen[45455][1] > 30, "grey reading no longer applies the gamma"
PY
