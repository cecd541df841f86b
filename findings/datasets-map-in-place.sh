#!/bin/sh
# Hugging Face datasets' map() with a function that changes the picture itself: thumbnail(), paste(), a drawing over
# faces or number plates that are not to be kept.
# Versions: datasets 5.2.0, Pillow 13.0.0, numpy 2.4.6.
# Guess: what the function returns is stored, as pixels: a picture returned unchanged, or changed in place, is the
#   picture that was returned, wherever it came from.
# Behaviour: a picture that Pillow opened from a file is stored as the path of that file, without a look at its pixels:
#   what was done to it in place is lost, and the plates are still there. Pictures that came as bytes (Parquet,
#   webdataset, after push_to_hub) are stored as changed, but encoded anew in the format they had: JPEG of Pillow's
#   default quality, 75 and subsampled, even where the function only passes them on. Pictures made by resize(), crop()
#   or convert() have neither path nor format and become lossless PNG. So one function gives three different data sets.
# Output seen (of a JPEG of quality 95; largest difference from it where nothing was drawn): from a folder: unchanged 0,
#   thumbnail 320 x 240, blackened half still a picture, 0; from bytes: unchanged 42, thumbnail 64 x 48 JPEG, half
#   black, 54; resize(): 64 x 48 PNG from both.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check datasets==5.2.0 pillow==13.0.0 numpy==2.4.6
cd "$dir"
HF_HOME="$dir/home" "$dir/venv/bin/python" - <<'PY'
import io
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, disable_progress_bars, load_dataset
from PIL import Image as Pictures

disable_progress_bars()
SIZE = (320, 240)
noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
photograph = Pictures.fromarray(noise).resize(SIZE, Pictures.Resampling.BICUBIC)
Path("photographs").mkdir()
photograph.save("photographs/a.jpg", quality=95, subsampling=0)
content = Path("photographs/a.jpg").read_bytes()
as_read = np.asarray(Pictures.open(io.BytesIO(content)), np.int16)

from_folder = load_dataset("imagefolder", data_dir="photographs", split="train", cache_dir="cache")
rows = [{"image": {"bytes": content, "path": None}}]
from_bytes = Dataset.from_list(rows, features=Features({"image": Image()}))


def unchanged(row):
    return {"image": row["image"]}


def in_place(row):
    row["image"].thumbnail((64, 64))
    return row


def new_picture(row):
    return {"image": row["image"].resize((64, 48))}


def blackened(row):
    row["image"].paste((0, 0, 0), (0, 0, 320, 120))
    return row


def describe(dataset, change):
    """Say what is stored after map(change): the size, and the steps of 255 that the lower half is off."""
    stored = dataset.map(change, load_from_cache_file=False)[0]["image"]
    pixels = np.asarray(stored.convert("RGB"), np.int16)
    if stored.size != SIZE:
        return f"{stored.width} x {stored.height}, {stored.format}"
    upper = "black" if pixels[:100].max() < 20 else "a picture"
    return f"{upper}, off by {abs(pixels - as_read)[120:].max()}"


seen = {}
for origin, dataset in (("folder", from_folder), ("bytes", from_bytes)):
    for change in (unchanged, in_place, new_picture, blackened):
        seen[origin, change.__name__] = describe(dataset, change)
        print(f"{origin:6} {change.__name__:11} {seen[origin, change.__name__]}")
untouched = "a picture, off by 0"
assert [seen["folder", name] for name in ("unchanged", "in_place", "blackened")] == [untouched] * 3, "now stored"
assert seen["bytes", "in_place"] == "64 x 48, JPEG" and seen["bytes", "blackened"].startswith("black, off by ")
assert seen["bytes", "unchanged"] != untouched, "JPEG bytes are now kept"
assert seen["folder", "new_picture"] == seen["bytes", "new_picture"] == "64 x 48, PNG"
PY
