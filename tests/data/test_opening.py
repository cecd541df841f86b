"""Image files: the kinds that are read, and what one may cost in memory and time."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from pipeline.data import opening, preprocess
from pipeline.data.image_kinds import IMAGE_SUFFIXES
from pipeline.data.opening import count_scans
from pipeline.errors import DataError

NOISE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def saved(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    stream = io.BytesIO()
    (image or Image.fromarray(NOISE)).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_kind_that_counts_as_an_image_is_read(suffix: str, tmp_path: Path) -> None:
    Image.init()
    kind = Image.EXTENSION.get(suffix)
    if kind is None or kind not in Image.SAVE or (kind == "AVIF" and not features.check("avif")):
        pytest.skip(f"this Pillow writes no {suffix}")
    path = tmp_path / f"image{suffix}"
    picture = Image.fromarray(NOISE)
    (picture.convert("L") if suffix in (".pgm", ".pbm") else picture).save(path, kind)
    for source in (path, path.read_bytes()):
        assert preprocess.decode(source).shape == (3, 24, 40)


@pytest.mark.parametrize("kind", ["EPS", "PCX", "SGI", "ICNS", "DDS"])
def test_other_kinds_are_not_read(kind: str) -> None:
    with pytest.raises(DataError, match=r"^image of \d+ bytes: cannot be decoded as an image: it is of no format that"):
        preprocess.decode(saved(kind, Image.fromarray(NOISE).resize((32, 32))))


def tiled(width: int, height: int) -> bytes:
    """Return a grey TIFF of 16 x 16 pixels in one tile, which is larger, as those at an image's edges are."""
    data = bytes(width * height)
    short = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 277: 1, 322: width, 323: height}
    where = 8 + 2 + 12 * 10 + 4
    entries = [(tag, 3, value) for tag, value in short.items()] + [(324, 4, where), (325, 4, len(data))]
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + data


def test_tiles_count_as_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    assert preprocess.decode(tiled(64, 64)).shape == (3, 16, 16)
    for width, height in ((80, 64), (64, 80)):
        with pytest.raises(
            DataError, match=rf"^image of \d+ bytes: tile: {width} x {height} is more than 4096 pixels$"
        ):
            preprocess.decode(tiled(width, height))


def with_scans(more: int) -> bytes:
    """Return a progressive JPEG whose last scan comes again and again."""
    content = saved("JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * more + content[-2:]


def test_count_scans_counts_those_of_the_first_image_alone() -> None:
    thumbnail = Image.Exif()
    thumbnail[0x010E] = "\xff\xda" * 9
    assert count_scans(saved("JPEG")) == 1
    assert count_scans(saved("JPEG", progressive=True, exif=thumbnail)) == 10
    assert count_scans(saved("JPEG", restart_marker_rows=1)) == 1
    assert count_scans(saved("JPEG") + b"\xff\xda" * 200) == 1
    assert count_scans(saved("JPEG")[:-2]) == 1
    assert count_scans(b"") == count_scans(b"\xff\xd8") == count_scans(b"\xff\xd8\xff\xff\xff\xda") - 1 == 0


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_scans_are_counted_only_where_the_first_does_not_hold_all_components(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    monkeypatch.setattr(opening, "_check_scans", lambda name, source: counted.append(len(source)))
    image = Image.fromarray(NOISE).convert(mode)
    for option in ("optimize", "restart_marker_rows", "progressive"):
        content = saved("JPEG", image, **{option: 1})
        with opening.opened(content) as found:
            found.load()
        assert counted == ([len(content)] if option == "progressive" else [])
    damaged = bytearray(saved("JPEG", image))
    damaged[damaged.rindex(b"\xff\xda") + 4] += 1  # components that the scan says it has
    counted.clear()
    with contextlib.suppress(DataError), opening.opened(bytes(damaged)):
        assert counted


@pytest.mark.parametrize("part", [1 << 20, 7])
def test_a_jpeg_has_so_many_scans_and_no_more(part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_PART", part)
    assert preprocess.decode(with_scans(90)).shape == (3, 24, 40)
    film = saved("JPEG") + b"\xff\xda" * 200  # as phones append one
    assert preprocess.decode(film).shape == (3, 24, 40)
    (tmp_path / "image.jpg").write_bytes(with_scans(91))
    for source in (with_scans(91), tmp_path / "image.jpg"):
        with pytest.raises(DataError, match=r": a JPEG of more than 100 scans, which would take long to decode$"):
            preprocess.decode(source)
