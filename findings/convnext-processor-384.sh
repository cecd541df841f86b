#!/bin/sh
# transformers' image processor of ConvNeXT and of its ResNets, at sizes around 384 pixels.
# Versions: transformers 5.24.0, Pillow 13.0.0, numpy 2.4.6.
# Guess: {"shortest_edge": 384, "crop_pct": 0.875} scales the shorter side to 438 and crops the middle 384, as
#   {"shortest_edge": 224} scales to 256 and crops 224.
# Behaviour: from 384 on neither is done: the whole picture is stretched to a square, whatever its shape, and crop_pct
#   is ignored. The name of the key and crop_pct in preprocessor_config.json stay the same. A picture of 2:1 shows at
#   383 its middle in proportion and at 384 everything at half the width.
# Output seen (of a picture of 600 x 300 with 100 red columns at the left and 100 blue ones at the right, columns of
#   each in the result): 224: 0, 0; 383: 0, 0; 384: 64, 64; 384 with crop_pct 0.5: 64, 64.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 transformers==5.24.0 pillow==13.0.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import numpy as np
from PIL import Image
from transformers import ConvNextImageProcessorPil

picture = np.zeros((300, 600, 3), np.uint8)
picture[:, :100] = (255, 0, 0)
picture[:, 500:] = (0, 0, 255)


def columns(size, crop_pct=0.875):
    """Return how many columns are red and how many are blue."""
    processor = ConvNextImageProcessorPil(size={"shortest_edge": size}, crop_pct=crop_pct, do_normalize=False)
    made = processor(images=Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    assert made.shape == (3, size, size)
    row = made[:, size // 2]
    return int((row[0] > 0.5).sum()), int((row[2] > 0.5).sum())


seen = {(size, crop): columns(size, crop) for size, crop in ((224, 0.875), (383, 0.875), (384, 0.875), (384, 0.5))}
for (size, crop), found in seen.items():
    print(f"shortest_edge {size}, crop_pct {crop}: {found[0]} red columns, {found[1]} blue")
assert list(seen.values()) == [(0, 0), (0, 0), (64, 64), (64, 64)], "the processor crops at 384 as well now"
PY
