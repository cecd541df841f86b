"""Which files are images, by their suffix: the one list of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

ANY = "any"  # in place of a suffix: every kind
JPEG = "JPEG"
_JPEG_SUFFIXES = (".jpeg", ".jpg", ".jpe", ".jfif")
_SPELLINGS = (_JPEG_SUFFIXES, (".tif", ".tiff"), (".ppm", ".pgm", ".pbm", ".pnm"), (".jp2", ".j2k", ".jpx"))
# What Pillow reads in every build; .avif only where it was built with it, else decoding raises.
IMAGE_SUFFIXES = frozenset({".png", ".bmp", ".dib", ".webp", ".gif", ".tga", ".avif"}.union(*_SPELLINGS))
# Kinds of photos that Pillow does not read: they are counted where images are left out.
UNREADABLE_SUFFIXES = frozenset({".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf"})


def list_spellings(suffix: str) -> tuple[str, ...]:
    """Return the endings that a suffix means, in lower case: JPEG includes .jpg, `any` includes every kind."""
    if suffix.lower() == ANY:
        return tuple(sorted(IMAGE_SUFFIXES))
    wanted = f".{suffix.lower().lstrip('.')}"
    return next((known for known in _SPELLINGS if wanted in known), (wanted,))


def kind_of(name: str) -> str | None:
    """Return the kind of an image file, as `spellings` takes it; None for other files."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in IMAGE_SUFFIXES | UNREADABLE_SUFFIXES:
        return None
    return JPEG if suffix in _JPEG_SUFFIXES else list_spellings(suffix)[0].lstrip(".")


def count_kinds(names: Iterable[str]) -> Counter[str]:
    """Return how many image files there are of each kind."""
    return Counter(kind for name in names if (kind := kind_of(name)) is not None)


def describe(kinds: Counter[str]) -> str:
    """Return counts as text, the most frequent first: `24 JPEG, 16 png`."""
    ordered = sorted(kinds.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{count} {kind}" for kind, count in ordered)
