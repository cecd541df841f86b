#!/bin/sh
# kornia.geometry's center_crop and resize in front of a network that was trained behind torchvision's or Pillow's.
# Versions: kornia 0.9.0, torch 2.13.0, Pillow 13.0.0, numpy 2.4.6.
# Guess: a crop copies pixels, and where the middle falls between two of them it is rounded, so that it is at most one
#   pixel from torchvision's. resize(antialias=True) is the widened triangle of Pillow and of torch's interpolate
#   (antialias=True), within a step of 255 of both.
# Behaviour: center_crop warps the picture by a matrix and samples it bilinearly. Where sizes differ by an odd number
#   (one pixel more or less of a photograph's height) its middle is half a pixel off the grid, and every pixel is the
#   mean of two or four: a blurred picture, in which fine detail is lost. augmentation.CenterCrop slices by default.
#   antialias=True blurs with a Gaussian, as its docstring says, and resizes without a filter: many steps from Pillow,
#   where torch is not. A set of photographs of even and odd heights is blurred in half of its pictures by the crop.
# Output seen (steps of 255, largest): center_crop of 340 x 256 to 224 x 224 0.0, of 340 x 257 42, of 339 x 257 57;
#   CenterCrop 0; shrinking beside Pillow: torch 0.9, kornia 19.2.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check --no-deps \
    --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$dir/venv/bin/pip" install -qq --disable-pip-version-check kornia==0.9.0 pillow==13.0.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import torch
from kornia.augmentation import CenterCrop
from kornia.geometry import center_crop, resize
from PIL import Image

CROP = 224
noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
photograph = Image.fromarray(noise).resize((340, 257), Image.Resampling.BICUBIC)


def as_batch(picture):
    return torch.tensor(np.asarray(picture), dtype=torch.float32).permute(2, 0, 1)[None]


def nearest_slice(batch, cropped):
    """Return the smallest of the largest differences from a slice around the middle, at most a pixel away."""
    top, left = ((size - CROP) // 2 for size in batch.shape[2:])
    slices = [
        batch[:, :, top + down : top + down + CROP, left + right : left + right + CROP]
        for down in (0, 1)
        for right in (0, 1)
    ]
    return round(min(float((cropped - each).abs().max()) for each in slices), 1)


crops = {}
for width, height in ((340, 256), (340, 257), (339, 257)):
    batch = as_batch(photograph.crop((0, 0, width, height)))
    crops[width, height] = nearest_slice(batch, center_crop(batch, (CROP, CROP)))
    sliced = nearest_slice(batch, CenterCrop((CROP, CROP))(batch))
    print(f"crop of {width} x {height}: center_crop {crops[width, height]}, CenterCrop {sliced}")
    assert sliced == 0
batch, size = as_batch(photograph), (80, 106)
wanted = as_batch(photograph.resize(size[::-1], Image.Resampling.BILINEAR))
by_torch = torch.nn.functional.interpolate(batch, size, mode="bilinear", antialias=True)
shrunk = {"torch": by_torch, "kornia": resize(batch, size, antialias=True)}
off = {name: round(float((answer - wanted).abs().max()), 1) for name, answer in shrunk.items()}
print(f"shrinking, antialiased, beside Pillow: torch {off['torch']}, kornia {off['kornia']}")
assert crops[340, 256] < 0.1 and crops[340, 257] > 10 and crops[339, 257] > 10, "center_crop copies pixels now"
assert off["torch"] < 2 and off["kornia"] > 4, "kornia's filter is another one now"
PY
