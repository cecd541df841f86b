"""Image files opened by Pillow: of the kinds that are read here, and within limits of memory and time."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import DataError, in_a_line, is_our_bug

# The kinds of `image_kinds.IMAGE_SUFFIXES`, the frequent ones first. Pillow tells a file by its content and would also
# hand it to other programs (EPS), or to decoders of formats that no camera and no browser writes.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
# Each scan of a JPEG goes over the whole image, however few bytes it has. Encoders write some 10.
_MOST_SCANS = 100
_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # those that end what a scan holds
_PART = 1 << 20  # bytes
_HEAD = 64  # bytes that tell other files from images
_HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1")  # of Apple's and others' photos
_AVIF = (b"avif", b"avis")
_CONVERT = "which is not read here; convert it, to JPEG or PNG"
_JXL = (b"\xff\n", b"\0\0\0\x0cJXL ")  # the bare stream, and the container
_NO_IMAGES = {
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer; run git lfs pull in its repository",
    b"<!doctype html": "an HTML page, as a failed download leaves; download it again",
    b"<html": "an HTML page, as a failed download leaves; download it again",
    b"<svg": "a drawing (SVG); export it as PNG",
    b"%pdf": "a PDF; export its pages as PNG",
    b"<?xml": "XML: a drawing (SVG), to be exported as PNG, or the error of a failed download",
    b"{": "text, as a failed download leaves; download it again",
    b"pk\x03\x04": "a zip archive; unpack it",
    _JXL[0]: f"JPEG XL, {_CONVERT}",
    _JXL[1].lower(): f"JPEG XL, {_CONVERT}",
}
_TILE = (322, 323)  # TIFF's tags of a tile's width and height


@contextmanager
def opened(source: Path | bytes) -> Iterator[Image.Image]:
    """Yield an image that is not decoded yet; what Pillow raises in the body becomes a DataError.

    Args:
        source: a file, or its bytes.

    Raises:
        DataError: the file is missing or no image; it, or a tile of it, has more pixels than `Image.MAX_IMAGE_PIXELS`
            (Pillow itself only warns up to twice that number); it is a JPEG of more than 100 scans.
    """
    name = str(source) if isinstance(source, Path) else f"image of {len(source)} bytes"
    with decoding(name), _open(source, name) as image:
        check_pixels(name, image.width, image.height)
        if image.format == "TIFF":
            _check_tiles(name, image)
        elif image.format in ("JPEG", "MPO") and not _has_one_scan(image):
            _check_scans(name, source)
        yield image


def _open(source: Path | bytes, name: str) -> Image.Image:
    try:
        return Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=_formats())
    except UnidentifiedImageError as error:  # whose own text names a buffer by its address
        raise DataError(f"{name}: cannot be decoded as an image: it is {_describe(source)}") from error


def _describe(source: Path | bytes) -> str:
    """Return what a file that is no image is, by its first bytes."""
    if isinstance(source, Path):
        with source.open("rb") as stream:
            head = stream.read(_HEAD)
    else:
        head = source[:_HEAD]
    found = (what for mark, what in _NO_IMAGES.items() if head.lstrip().lower().startswith(mark))
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF:
        return f"HEIC, {_CONVERT}"
    if head[4:8] == b"ftyp" and head[8:12] not in _AVIF:
        return "a film (MP4 or the like); write frames of it to image files"
    if head and not any(head):
        return "nothing but zeros at its beginning, as a broken copy leaves; copy or download it again"
    return next(found, "of no format that is read here") if head else "empty; copy or download it again"


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(each for each in _FORMATS if each in Image.OPEN)  # Pillow before 11.3 has no AVIF


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn what Pillow raises into a DataError."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    # Pillow's decoders meet a damaged file with a dozen exception types (struct.error, SyntaxError, zlib.error, ...).
    except Exception as error:
        if is_our_bug(error):
            raise
        raise DataError(f"{name}: cannot be decoded as an image: {in_a_line(error)}") from error


def check_pixels(name: str, width: int, height: int) -> None:
    """Raise DataError for more pixels than `Image.MAX_IMAGE_PIXELS`."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise DataError(f"{name}: {width} x {height} is more than {limit} pixels")


def _check_tiles(name: str, image: Image.Image) -> None:
    tags = getattr(image, "tag_v2", {})
    width, height = (tags.get(tag, 0) for tag in _TILE)
    check_pixels(f"{name}: tile", int(width), int(height))


def _has_one_scan(image: Image.Image) -> bool:
    """Tell whether the scan that an opened JPEG begins with is all that is decoded: it has every component."""
    layers, file = getattr(image, "layers", 0), getattr(image, "fp", None)
    if "progressive" in image.info or not 1 <= layers <= 4 or file is None:
        return False
    header = _SCAN + bytes([0, 6 + 2 * layers, layers])  # its size, and the number of components in it
    file.seek(-len(header) - 2 * layers - 3, io.SEEK_CUR)  # Pillow has read it, and stands behind it
    found: bytes = file.read(len(header) + 2 * layers + 3)
    return found.startswith(header)


def _check_scans(name: str, source: Path | bytes) -> None:
    content = source.read_bytes() if isinstance(source, Path) else source
    # More markers may also be of other files within this one: a film, or pictures of a preview.
    if _count_markers(content) > _MOST_SCANS and count_scans(content) > _MOST_SCANS:
        raise DataError(f"{name}: a JPEG of more than {_MOST_SCANS} scans, which would take long to decode")


def _count_markers(content: bytes) -> int:
    """Return how often the marker of a scan is found, wherever: NumPy takes a twentieth of the time of bytes.count."""
    values, count = np.frombuffer(content, np.uint8), 0
    for start in range(0, len(values), _PART):
        part = values[start : start + _PART + 1]
        count += int(np.count_nonzero((part[:-1] == _SCAN[0]) & (part[1:] == _SCAN[1])))
    return count


def count_scans(content: bytes) -> int:
    """Return the scans of a JPEG's first image."""
    at, scans = 2, 0  # behind the marker of its start
    while (found := _MARKER.search(content, at)) is not None and found[1] != b"\xd9":
        size = int.from_bytes(content[found.end() : found.end() + 2], "big")
        at = found.end() + size
        scans += found[1] == _SCAN[1:]
    return scans
