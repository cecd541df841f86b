#!/bin/sh
# imageio.v3.imread of the same palette picture as PNG, BMP, GIF and TIFF, and of a CMYK JPEG.
# Versions: imageio 2.38.1, tifffile 2026.3.3, Pillow 13.0.0, numpy 2.4.6.
# Guess: imread gives an array [H, W, 3] of what a viewer shows, as cv2.imread and Pillow's convert("RGB") do.
# Behaviour: imageio picks a reader by the suffix. Pillow's, for PNG and BMP, applies the palette; tifffile's, for
#   TIFF, gives the numbers of the palette's entries as [H, W], which look like a grey picture and mean nothing; GIF
#   comes as [frames, H, W, 3] also where there is one; CMYK as four channels of ink. Only TIFF can go wrong without
#   an error of shape, in a loader that takes grey pictures. plugin="pillow" gives colours of a TIFF as well.
# Output seen: png (16, 16, 3), bmp (16, 16, 3), gif (1, 16, 16, 3), tiff (16, 16) with values 0 to 15; tiff by the
#   plugin pillow (16, 16, 3); CMYK jpg (8, 8, 4).
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 imageio==2.38.1 tifffile==2026.3.3 pillow==13.0.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import imageio.v3 as iio
import numpy as np
from PIL import Image

colours = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
picture = Image.fromarray(colours).quantize(16)
shown = np.asarray(picture.convert("RGB"))
seen = {}
for suffix in ("png", "bmp", "gif", "tiff"):
    picture.save(f"palette.{suffix}")
    array = iio.imread(f"palette.{suffix}")
    seen[suffix] = array.shape
    right = array.shape[-3:] == shown.shape and np.array_equal(array.reshape(shown.shape), shown)
    print(f"{suffix}: {array.shape}, values {array.min()} to {array.max()}, colours {'right' if right else 'lost'}")
    assert right == (suffix != "tiff")
indices = iio.imread("palette.tiff")
assert np.array_equal(np.asarray(picture), indices), "the indices of the palette"
assert np.array_equal(iio.imread("palette.tiff", plugin="pillow"), shown)
Image.new("CMYK", (8, 8), (10, 200, 30, 40)).save("ink.jpg")
seen["jpg"] = iio.imread("ink.jpg").shape
print("CMYK jpg:", seen["jpg"])
shapes = [(16, 16, 3), (16, 16, 3), (1, 16, 16, 3), (16, 16), (8, 8, 4)]
assert list(seen.values()) == shapes, "imageio gives other shapes now"
PY
