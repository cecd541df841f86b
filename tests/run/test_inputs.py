"""inputs.py: what predict takes, and the pixels of it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import preprocess
from pipeline.data.image_kinds import IMAGE_SUFFIXES
from pipeline.errors import DataError
from pipeline.run.inputs import decode, find_images, name_images


@pytest.mark.parametrize("mode", ["I;16", "L", "LA", "P", "RGBA", "CMYK", "1", "exif"])
def test_decode_gives_pillow_images_the_pixels_of_their_files(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / ("x.jpg" if mode in ("CMYK", "exif") else "x.png")
    if mode == "I;16":
        Image.fromarray(rng.integers(0, 1 << 16, (20, 30)).astype(np.uint16)).save(path)
    elif mode == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned, which decoding does not
        Image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)).save(path, exif=exif)
    else:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)).convert(mode).save(path)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(decode(opened), preprocess.decode(path))
    assert decode(str(path)).shape == (3, 20, 30)
    if mode == "I;16":
        assert len(np.unique(decode(path))) > 200  # the upper 8 bits, where Pillow's own conversion cuts off at 255


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES | {".npz", ".PPM", ".Npz"}))
def test_find_images_takes_every_kind_of_image(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"x{suffix}").touch()
    (tmp_path / "notes.txt").touch()
    assert find_images([tmp_path]) == [tmp_path / f"x{suffix}"]


def test_decode_leaves_the_name_to_the_caller_when_a_file_is_gone(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.jpg", f"file://{tmp_path}/gone.jpg"):
        with pytest.raises(DataError, match=r"^no such file$"):
            decode(path)


def test_name_images_takes_a_name_that_is_too_long_for_a_file(tmp_path: Path) -> None:
    name = os.fspath(tmp_path / ("x" * 300))
    assert list(name_images(name)) == [(name, name)]
