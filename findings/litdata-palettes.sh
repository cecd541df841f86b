#!/bin/sh
# Images with a palette (GIF, indexed PNG) in the data sets that litdata writes for streaming.
# Versions: litdata 0.2.76, torch 2.13.0+cpu, numpy 2.4.6, Pillow 12.3.0.
# Guess: optimize() and StreamingDataset return the picture that was given, whatever its mode, as they do for RGB, LA,
#   CMYK and 16-bit grey; or refuse the mode.
# Behaviour: what is not a JPEG file is stored as mode, size and raw pixels. Of an indexed image these are the numbers of
#   colours, and the colours are not stored: it comes back with mode P and a grey ramp as its palette. convert("RGB")
#   gives grey noise of the right shape and label, in training and in calibration, without a word. The data set was
#   written once and the sources may be gone. Convert to RGB in the function given to optimize().
# Output seen (largest difference in RGB between the picture given and the one read): indexed PNG 247; the same picture
#   in RGB 0, LA 0, CMYK 0.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check --no-deps \
    --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    litdata==0.2.76 torch==2.13.0+cpu numpy==2.4.6 Pillow==12.3.0
cat > "$dir/data_set.py" <<'PY'
import os

import litdata
import numpy as np
from PIL import Image

MODES = ("P", "RGB", "LA", "CMYK")


def picture(mode):
    """Return a smooth picture of 32 x 32 pixels in this mode; "P" as an indexed PNG file holds it."""
    row, column = np.mgrid[0:32, 0:32] * 8
    image = Image.fromarray(np.stack([row, column, 255 - row], -1).astype(np.uint8))
    if mode != "P":
        return image.convert(mode)
    image.quantize(64).save("indexed.png")
    return Image.open("indexed.png")


def sample(mode):
    return {"image": picture(mode), "label": MODES.index(mode)}


def rgb(image):
    return np.asarray(image.convert("RGB")).astype(int)


if __name__ == "__main__":
    litdata.optimize(fn=sample, inputs=list(MODES), output_dir="optimized", chunk_bytes="1MB", num_workers=1)
    seen = {}
    for item in litdata.StreamingDataset(os.path.abspath("optimized"), shuffle=False):
        mode = MODES[item["label"]]
        seen[mode] = int(np.abs(rgb(item["image"]) - rgb(picture(mode))).max())
        print(mode, "comes back with mode", item["image"].mode, "and a largest difference of", seen[mode])
    assert seen.pop("P") > 100, "the colours come back"
    assert seen == {"RGB": 0, "LA": 0, "CMYK": 0}, seen
PY
cd "$dir"
DATA_OPTIMIZER_CACHE_FOLDER="$dir/cache" DATA_OPTIMIZER_DATA_CACHE_FOLDER="$dir/data" \
    "$dir/venv/bin/python" -W ignore data_set.py 2> messages.log || { cat messages.log; exit 1; }
