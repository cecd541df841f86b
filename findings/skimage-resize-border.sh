#!/bin/sh
# Enlarging a picture by scikit-image's resize and by OpenCV's, both linear, both with half-pixel centres.
# Versions: scikit-image 0.26.0, opencv-python-headless 5.0.0.93, numpy 2.4.6.
# Guess: equal within one step of 255; the documented default mode="reflect" repeats the edge pixel ("d c b a | a b c
#   d", as in scipy.ndimage), which for a linear filter is what OpenCV does.
# Behaviour: scikit-image's "reflect" is numpy.pad's, "d c b | a b c d", without the edge pixel. New pixels that lie
#   outside the first and last centre mix in the second row or column. The inside agrees; a frame of half the
#   enlargement does not, by tens of steps. mode="symmetric" or "edge" agrees everywhere. Shrinking without the
#   anti-aliasing filter never reaches the border, so a test that only shrinks does not see it.
# Output seen (steps): shrinking 0.5; enlarging, inside 0.6, frame 61.0; with mode="edge" 0.6.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 scikit-image==0.26.0 opencv-python-headless==5.0.0.93
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import cv2
import numpy as np
from skimage.transform import resize

picture = np.random.default_rng(0).integers(0, 256, (60, 90), dtype=np.uint8)


def difference(height, width, **options):
    ours = resize(picture, (height, width), order=1, anti_aliasing=False, preserve_range=True, **options)
    return np.abs(ours - cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR))


shrunk, enlarged = difference(30, 45).max(), difference(120, 180)
inside, edge = enlarged[1:-1, 1:-1].max(), difference(120, 180, mode="edge").max()
print(
    f'shrinking {shrunk:.1f}; enlarging, inside {inside:.1f}, frame {enlarged.max():.1f}; with mode="edge" {edge:.1f}'
)
assert max(shrunk, inside, edge) <= 1
assert enlarged.max() > 20, "the frame agrees now"
PY
