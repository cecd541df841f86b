#!/bin/sh
# Hugging Face datasets' imagefolder on a folder of classes, one of which is called train, test or val: a railway data
# set, say, with car/, plane/ and train/.
# Versions: datasets 5.2.0, Pillow 13.0.0, numpy 2.4.6.
# Guess: three folders of images are three labels of one split; a folder is a split only where all of them are.
# Behaviour: one such word is enough. The loader keeps that folder as the split of this name, and neither loads nor
#   mentions the other classes; with one folder left there are no labels either. It need not be the whole name:
#   train-station does the same. data_files with a pattern of one's own, or drop_labels=False, is needed.
# Output seen: car, plane, ship: 9 images, 3 labels; car, plane, train: split train of 3 images without labels; cat,
#   dog, test: split test of 3; car, train-station: split train of 3.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 datasets==5.2.0 pillow==13.0.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
from PIL import Image

datasets.disable_progress_bars()


def load(*classes):
    root = Path("-".join(classes))
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for image in range(3):
            Image.new("RGB", (8, 8), (40 * number, 40 * image, 0)).save(root / name / f"{image}.png")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(root), cache_dir="cache")
    return {split: (len(part), part.features["label"].names if "label" in part.features else None)
            for split, part in loaded.items()}


seen = {}
for classes in (("car", "plane", "ship"), ("car", "plane", "train"), ("cat", "dog", "test"), ("car", "train-station")):
    seen[classes] = load(*classes)
    print(", ".join(classes), "->", seen[classes])
assert list(seen.values()) == [
    {"train": (9, ["car", "plane", "ship"])},
    {"train": (3, None)},
    {"test": (3, None)},
    {"train": (3, None)},
], "imagefolder treats class folders named like splits otherwise now"
PY
