"""bit_depth.py on files of 16 bits that hold values of 8, 10, 12 and 16."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import preprocess
from pipeline.data.bit_depth import describe_dark
from pipeline.data.sources import ImageSource


def grey(largest: int, kind: str) -> bytes:
    values = np.linspace(0, largest, 48 * 64).reshape(48, 64).astype(np.uint16)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("largest", "found"), [(200, 200), (1023, 1023), (4095, 4095), (4096, None), (65535, None), (0, None)]
)
def test_check_returns_the_largest_value_when_it_fits_into_12_bits(kind: str, largest: int, found: int | None) -> None:
    assert preprocess.check(grey(largest, kind)) == found


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("largest", "found"), [(4000, 4095), (1000, 1023), (65535, None)])
@pytest.mark.parametrize("channels", [3, 4])
def test_check_returns_the_largest_of_colours(suffix: str, largest: int, found: int | None, channels: int) -> None:
    cv2 = pytest.importorskip("cv2", reason="writes files of 16 bits per channel")
    values = np.linspace(0, largest, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint16)
    if channels == 4:
        values = np.concatenate([values, np.full((48, 64, 1), 65535, np.uint16)], axis=2)
    assert preprocess.check(cv2.imencode(suffix, values)[1].tobytes()) == found


def test_check_says_nothing_of_a_dark_image_of_8_bits() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (3, 3, 3)).save(stream, "PNG")
    assert preprocess.check(stream.getvalue()) is None


def test_describe_dark_names_the_first_and_its_largest_value() -> None:
    dark = {ImageSource(Path("/data"), name): value for name, value in (("b.png", 4001), ("a.png", 1023))}
    assert describe_dark(dark, 5) == (
        "2 of 5 images have 16 bits a channel and no value above 4095 (first: /data/a.png, largest 1023): the upper 8 "
        "bits are taken, as OpenCV does, so that they are nearly black; save them as 8 bits, scaled as they were for "
        "the training"
    )
