#!/bin/sh
# A GIF with a transparent palette entry, read without alpha by OpenCV 5 (which has its own GIF reader) and by Pillow.
# Versions: opencv-python-headless 5.0.0.93, Pillow 13.0.0, numpy 2.4.6.
# Guess: both drop the alpha and give the palette's colour for the transparent entry, as both do for a palette PNG.
# Behaviour: OpenCV gives such pixels the colour of the file's background index instead (entry 0 where none was
#   chosen), in IMREAD_COLOR and in grey. The palette's own colour, which IMREAD_UNCHANGED shows in the other file
#   format, is lost.
# Output seen: PNG: OpenCV and Pillow give (200, 30, 60); GIF: Pillow (200, 30, 60), OpenCV (10, 20, 30), palette
#   entry 0.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 Pillow==13.0.0 opencv-python-headless==5.0.0.93
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import io

import cv2
import numpy as np
from PIL import Image

COLOURS = [(10, 20, 30), (0, 255, 0), (200, 30, 60), (90, 90, 90)]
indices = np.random.default_rng(0).integers(0, 4, (20, 30), dtype=np.uint8)
picture = Image.fromarray(indices).convert("P")
picture.putdata(indices.ravel().tolist())
picture.putpalette([level for colour in COLOURS for level in colour])

seen = {}
for form in ("PNG", "GIF"):
    out = io.BytesIO()
    picture.save(out, form, transparency=2, optimize=False)
    opencv = cv2.imdecode(np.frombuffer(out.getvalue(), np.uint8), cv2.IMREAD_COLOR_RGB)
    pillow = np.asarray(Image.open(out).convert("RGB"))
    opaque = indices != 2
    assert (opencv[opaque] == pillow[opaque]).all()
    colours = [{tuple(pixel.tolist()) for pixel in image[~opaque]} for image in (opencv, pillow)]
    assert all(len(found) == 1 for found in colours)
    seen[form] = [found.pop() for found in colours]
    print(f"{form}: transparent pixels are {seen[form][0]} in OpenCV, {seen[form][1]} in Pillow")
assert seen["PNG"] == [COLOURS[2], COLOURS[2]]
assert seen["GIF"][1] == COLOURS[2]
assert seen["GIF"][0] == COLOURS[0], "OpenCV no longer paints the background colour"
PY
