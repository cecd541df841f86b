"""Images and results as npz files, and the datalists that name them.

A file holds one array, uncompressed, in the layout of `numpy.savez`; equal arrays give equal bytes. Files of other
writers (several members, compressed) are read too, only slower.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts import whole_file
from pipeline.config.choices import PreprocessAs
from pipeline.data.list_files import read_lines
from pipeline.data.npz_format import (
    CENTRAL,
    END,
    LOCAL,
    as_array,
    find_sole_member,
    read_local_lengths,
    yield_zip_parts,
)
from pipeline.data.storage import Location, Url, absolute, location, read_stamps
from pipeline.errors import DataError

IMAGE_KEY = "input_0"
RESULT_KEY = "output_0"
MAX_IMAGE_BYTES = 3 * 178_956_970  # pixels at which Pillow calls an image a decompression bomb, three bytes each
MAX_RESULT_BYTES = 64 << 20  # float32 of 16 million classes
_MAX_OVERHEAD_BYTES = 1 << 20  # of the zip around the array, and of other small members beside it

_STAMP = struct.Struct("<8sQ")  # tag, bytes of the source; kept as the comment of the zip member
_STAMP_TAGS = {  # by how EXIF could turn the image
    PreprocessAs.TORCHVISION: b"int8src1",
    PreprocessAs.PADDLECLAS: b"int8tur1",
    PreprocessAs.TRANSFORMERS: b"int8tur2",
}


def write_image_npz(
    path: Location,
    image_chw: NDArray[np.uint8],
    source_stamp: tuple[int, int] | None = None,
    *,
    decoded_as: PreprocessAs = PreprocessAs.TORCHVISION,
) -> None:
    """Write an image, whole or not at all.

    Args:
        path: the npz file; its folder is made where missing.
        image_chw: uint8 [3, H, W], RGB.
        source_stamp: (bytes, modification time in ns) of the file it was decoded from, for `is_image_of`. The time
            becomes the npz file's own; a store keeps its own time.
        decoded_as: as of `preprocess.decode`; kept for `is_image_of` as well.

    Raises:
        ValueError: another dtype or shape.
    """
    if image_chw.dtype != np.uint8 or image_chw.ndim != 3 or image_chw.shape[0] != 3:
        raise ValueError(f"image: expected uint8 [3, H, W], got {_describe(image_chw)}")
    comment = b"" if source_stamp is None else _STAMP.pack(_STAMP_TAGS[decoded_as], source_stamp[0])
    _write(path, IMAGE_KEY, image_chw, comment, None if source_stamp is None else source_stamp[1])


def read_image_npz(path: Location) -> NDArray[np.uint8]:
    """Return the image, uint8 [3, H, W] RGB; the caller owns it. A file with [1, 3, H, W] is taken too.

    Raises:
        DataError: missing, damaged, too large, or another key, dtype or shape.
    """
    image = _read(path, IMAGE_KEY, MAX_IMAGE_BYTES)
    batch = image.shape[1:] if image.ndim == 4 and image.shape[0] == 1 else image.shape
    if image.dtype != np.uint8 or len(batch) != 3 or batch[0] != 3 or not image.size:
        raise DataError(f"{path}: expected {IMAGE_KEY} uint8 [3, H, W], found {_describe(image)}; make it by image2npz")
    return image.reshape(batch)


def is_image_of(
    path: Path, source_stamp: tuple[int, int], *, decoded_as: PreprocessAs = PreprocessAs.TORCHVISION
) -> bool:
    """Tell whether `path` is a whole image npz written so, at the cost of two small reads."""
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            tail_bytes = CENTRAL.size + len(f"{IMAGE_KEY}.npy") + _STAMP.size + END.size
            if status.st_mtime_ns != source_stamp[1] or status.st_size < tail_bytes:
                return False
            stream.seek(-tail_bytes, os.SEEK_END)
            member = find_sole_member(stream.read(tail_bytes), status.st_size)
            stream.seek(0)
            local = stream.read(LOCAL.size)
    except OSError:
        return False
    return (
        member is not None
        and local.startswith(b"PK\3\4")
        and member.comment == _STAMP.pack(_STAMP_TAGS[decoded_as], source_stamp[0])
    )


def find_decoding(path: Path) -> PreprocessAs | None:
    """Return as which library `image2npz` decoded the image of a local npz; None where the file does not say."""
    tail_bytes = CENTRAL.size + len(f"{IMAGE_KEY}.npy") + _STAMP.size + END.size
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(max(0, size - tail_bytes))
            member = find_sole_member(stream.read(tail_bytes), size) if size >= tail_bytes else None
    except OSError:
        return None
    tag = b"" if member is None else member.comment[:8]
    return next((library for library, known in _STAMP_TAGS.items() if known == tag), None)


def write_result_npz(path: Location, output: NDArray[np.float32]) -> None:
    """Write what the network gave for one sample, float32 [1, classes], whole or not at all.

    Raises:
        ValueError: another dtype or shape.
    """
    if output.dtype != np.float32 or output.ndim != 2 or output.shape[0] != 1:
        raise ValueError(f"result: expected float32 [1, classes], got {_describe(output)}")
    _write(path, RESULT_KEY, output, b"", None)


def read_result_npz(path: Location) -> NDArray[np.float32]:
    """Return float32 [1, classes].

    Raises:
        DataError: missing, damaged, too large, or another key, dtype or shape.
    """
    output = _read(path, RESULT_KEY, MAX_RESULT_BYTES)
    if output.dtype != np.float32 or output.ndim != 2 or output.shape[0] != 1 or not output.size:
        raise DataError(
            f"{path}: expected {RESULT_KEY} float32 [1, classes], found {_describe(output)}; run bench again"
        )
    return output


def read_datalist(path: Path) -> list[Location]:
    """Return the files that a datalist names, in its order; relative lines count from the list's folder.

    Raises:
        DataError: the list is missing or empty, names a file twice, or names missing files.
    """
    folder = path.absolute().parent
    lines: dict[Location, int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        named = location(line.strip())
        named = folder / named if isinstance(named, Path) else named
        first = lines.setdefault(named, number)
        if first != number:
            raise DataError(f"{path}:{number}: {named} stands in line {first} already; remove one of them")
    if not lines:
        raise DataError(f"{path}: names no files; make it by image2npz")
    missing = [
        f"{named} (line {number})"
        for (named, number), stamp in zip(lines.items(), read_stamps(lines), strict=True)
        if stamp is None
    ]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(f"{path}: {len(missing)} of {len(lines)} files are missing: {shown}; run image2npz again")
    return list(lines)


def write_datalist(path: Path, paths: Sequence[Location]) -> None:
    """Write one absolute path or URL a line, whole or not at all."""
    lines = [str(absolute(named)) for named in paths]
    broken = next((line for line in lines if "\n" in line or "\r" in line), None)
    if broken is not None:
        raise DataError(f"{path}: the path {broken!r} holds a line end; rename the folder")
    with whole_file(path) as scratch:
        scratch.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")


def _write(path: Location, key: str, array: NDArray[Any], comment: bytes, mtime_ns: int | None) -> None:
    if isinstance(path, Url):
        path.write_bytes(b"".join(yield_zip_parts(f"{key}.npy".encode("ascii"), array, comment)))
        return
    with whole_file(path) as scratch:
        with scratch.open("wb", buffering=0) as stream:
            for part in yield_zip_parts(f"{key}.npy".encode("ascii"), array, comment):
                stream.write(part)
        if mtime_ns is not None:
            os.utime(scratch, ns=(mtime_ns, mtime_ns))


def _read(path: Location, key: str, max_bytes: int) -> NDArray[Any]:
    """Return the array under `key`, after checking its sum; never unpickles."""
    try:
        content = _read_file(path, max_bytes + _MAX_OVERHEAD_BYTES)
        member = find_sole_member(content.data, len(content))
        if member is None or member.name != f"{key}.npy":
            return _read_any_zip(path, content, key, max_bytes)
        start = member.offset + sum(read_local_lengths(content, member.offset))
        stored = content[start : start + member.size]
        if zlib.crc32(stored.data) != member.crc:
            raise DataError(f"{path}: damaged (checksum differs); make it again")
        return as_array(stored)
    except (OSError, EOFError, ValueError, struct.error, zlib.error, zipfile.BadZipFile, NotImplementedError) as err:
        reason = err.strerror if isinstance(err, OSError) else err
        raise DataError(f"{path}: not a readable npz file ({reason}); make it again") from err


def _read_file(path: Location, max_bytes: int) -> NDArray[np.uint8]:
    """Return the bytes of a file as a writable array: views of it become the caller's array without a copy."""
    if isinstance(path, Url):
        object_bytes = path.read_bytes(max_bytes + 1)
        if len(object_bytes) > max_bytes:
            raise ValueError(f"more than the {max_bytes} bytes expected at most")
        return np.frombuffer(bytearray(object_bytes), np.uint8)
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"{size} bytes, more than the {max_bytes} expected at most")
        content = np.empty(size, np.uint8)
        view = content.data
        filled = 0
        while filled < size and (count := stream.readinto(view[filled:])):
            filled += count
    return content[:filled]


def _read_any_zip(path: Location, content: NDArray[np.uint8], key: str, max_bytes: int) -> NDArray[Any]:
    """Read a member the slow way: compressed, or one of several."""
    with zipfile.ZipFile(io.BytesIO(content.data)) as archive:
        names = archive.namelist()
        if f"{key}.npy" not in names:
            found = ", ".join(name.removesuffix(".npy") for name in names[:5]) or "nothing"
            raise DataError(f"{path}: expected the key {key}, found {found}")
        member = archive.getinfo(f"{key}.npy")
        if member.file_size > max_bytes + _MAX_OVERHEAD_BYTES:
            raise ValueError(f"{key} claims {member.file_size} bytes, more than the {max_bytes} expected at most")
        # A copy, so that the array can be written to like one of the fast path.
        return as_array(np.frombuffer(bytearray(archive.read(member)), np.uint8))


def _describe(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
