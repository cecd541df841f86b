"""The lines of list files, and the names of images in them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from pipeline.data.image_kinds import IMAGE_SUFFIXES
from pipeline.data.sources import ImageSource
from pipeline.errors import DataError

MAX_LIST_BYTES = 256 << 20  # ImageNet's training list has 1.3 million lines of 45 bytes


def read_lines(path: Path | ImageSource) -> list[str]:
    """Return the lines of a list file, without their ends.

    Raises:
        DataError: missing, not text, or larger than MAX_LIST_BYTES.
    """
    content = path.read() if isinstance(path, ImageSource) else _read_list(path)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: is text in UTF-16; save it as UTF-8")
    # File names need not be UTF-8; surrogates carry their bytes through unchanged.
    text = content.decode("utf-8-sig", errors="surrogateescape")
    return [line.rstrip("\r") for line in text.split("\n" if "\n" in text else "\r")]


def _read_list(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_LIST_BYTES + 1)
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror}); give an existing list file") from err
    if len(content) > MAX_LIST_BYTES:
        raise DataError(f"{path}: larger than {MAX_LIST_BYTES >> 20} MiB, so not taken for a list")
    return content


def image_stem(name: str) -> str:
    """Return a file name without folder and image suffix; a dot that begins no image suffix stays."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
