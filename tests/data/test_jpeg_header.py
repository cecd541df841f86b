"""jpeg_header.py against Pillow: what is plain, Pillow opens as RGB, of the same size and with one scan."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.jpeg_header import find_plain_hw
from pipeline.data.opening import opened

SHARED = Path(__file__).parents[3] / "shared" / "data"
HW = (61, 83)
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"


def saved(kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, kind, **options)
    return file.getvalue()


def with_segment(marker: int, content: bytes) -> bytes:
    """Return a plain JPEG with another segment behind its first."""
    segment = b"\xff" + bytes([marker]) + (len(content) + 2).to_bytes(2, "big") + content
    whole = saved()
    assert whole[2:].startswith(_JFIF)
    return whole[: 2 + len(_JFIF)] + segment + whole[2 + len(_JFIF) :]


@pytest.mark.parametrize(
    "content",
    [
        saved(),
        saved(subsampling=0, quality=100),
        saved(optimize=True),
        saved(comment=b"text"),
        saved(restart_marker_blocks=3),
        saved() + b"more behind it",
        with_segment(0xE0, b"JFXX" + bytes(20)),
    ],
)
def test_find_plain_hw_finds_the_size(content: bytes) -> None:
    assert find_plain_hw(content) == HW


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xd8",
        b"no image",
        saved("PNG"),
        saved(mode="L"),
        saved(mode="CMYK"),
        saved(progressive=True),
        saved(exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"),
        saved(icc_profile=bytes(100)),
        saved(keep_rgb=True),  # with Adobe's segment in place of JFIF's
        with_segment(0xDB, b"\x10" + bytes(128)),  # tables of 16 bits
        with_segment(0xDB, b"\x00" + bytes(63)),
        with_segment(0xDB, b""),
        with_segment(0xE0, b"JFIF"),
        with_segment(0xC0, b"\x08\x00\x10\x00\x10\x03" + bytes(9)),  # a second frame
        with_segment(0xDA, b"\x01" + bytes(5)),  # a scan of one component
        with_segment(0x01, b""),
        b"\xff\xd8" + b"\xff\xfe\x00\x02" * 100_000,
    ],
)
def test_find_plain_hw_leaves_to_pillow_what_is_not_plain(content: bytes) -> None:
    assert find_plain_hw(content) is None


@pytest.mark.parametrize("place", [(0, 0), (0, 83), (61, 0)])
def test_find_plain_hw_finds_no_image_without_pixels(place: tuple[int, int]) -> None:
    content = bytearray(saved())
    frame = content.index(b"\xff\xc0") + 5
    content[frame : frame + 4] = place[0].to_bytes(2, "big") + place[1].to_bytes(2, "big")
    assert find_plain_hw(bytes(content)) is None


def test_find_plain_hw_leaves_images_beyond_the_limit_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, wanted in ((HW[0] * HW[1], HW), (HW[0] * HW[1] - 1, None), (None, HW)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert find_plain_hw(saved()) == wanted


def _cut(whole: bytes, _: np.random.Generator, number: int) -> bytes:
    return whole[:number]


def _changed(whole: bytes, random: np.random.Generator, _: int) -> bytes:
    damaged = bytearray(whole)
    header = whole.index(b"\xff\xda") + 14
    for place in random.integers(0, header, 2):
        damaged[place] = random.integers(0, 256)
    return bytes(damaged)


def _shortened(whole: bytes, random: np.random.Generator, _: int) -> bytes:
    at = int(random.integers(2, whole.index(b"\xff\xda") + 14))
    return whole[:at] + whole[at + int(random.integers(1, 8)) :]


@pytest.mark.parametrize("damage", [_cut, _changed, _shortened])
def test_what_is_plain_is_opened_by_pillow_too(
    damage: Callable[[bytes, np.random.Generator, int], bytes],
) -> None:
    whole, random, plain = saved(comment=b"text", restart_marker_blocks=2), np.random.default_rng(0), 0
    for number in range(700):
        content = damage(whole, random, number)
        hw = find_plain_hw(content)
        if hw is None:
            continue
        plain += 1
        with warnings.catch_warnings(), opened(content) as image:  # which raises DataError for what it refuses
            warnings.simplefilter("ignore")
            assert (image.mode, image.height, image.width, image.format) == ("RGB", *hw, "JPEG")
            assert "progressive" not in image.info
    assert plain


@pytest.mark.realdata
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_find_plain_hw_finds_the_size_of_photos() -> None:
    for path in sorted(SHARED.glob("*/*/*.JPEG"))[::10]:
        with Image.open(path) as image:
            assert find_plain_hw(path.read_bytes()) == (image.height, image.width)
