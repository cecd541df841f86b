"""The bytes of an npz file with one uncompressed array: a zip file with one stored member in numpy's npy format."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The three records of a zip file (APPNOTE.TXT 4.3.7, 4.3.12, 4.3.16), little endian, without variable parts.
LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
_VERSION = 20  # of the zip format: 2.0
_DATE = 33  # 1980-01-01: a date of writing would make equal files differ
_MODE = 0o600 << 16  # as zipfile writes it
_STORED = 0
_MAX_HEADER_BYTES = 10_000  # of the array; numpy's own limit


@dataclass(frozen=True)
class Member:
    """The one member of a zip file that stores it uncompressed."""

    name: str
    crc: int
    size: int  # bytes
    offset: int  # of its local record
    comment: bytes


def yield_zip_parts(name: bytes, array: NDArray[Any], comment: bytes) -> Iterator[bytes | memoryview]:
    """Yield the pieces of a zip file with one stored member."""
    header = io.BytesIO()
    array = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    content = array.data.cast("B")
    size = header.tell() + len(content)
    crc = zlib.crc32(content, zlib.crc32(header.getvalue()))
    common = (_VERSION, 0, _STORED, 0, _DATE, crc, size, size, len(name), 0)
    local = LOCAL.pack(b"PK\3\4", *common) + name + header.getvalue()
    central = CENTRAL.pack(b"PK\1\2", 3 << 8 | _VERSION, *common, len(comment), 0, 0, _MODE, 0) + name + comment
    yield local
    yield content
    start = len(local) + len(content)
    yield central + END.pack(b"PK\5\6", 0, 0, 1, 1, len(central), start, 0)


def find_sole_member(tail: bytes | memoryview, file_size: int) -> Member | None:
    """Return the member of a zip file from its last bytes; None if it is not the only one or not plainly stored."""
    if len(tail) < END.size + CENTRAL.size:
        return None
    tag, *_, entries, length, start, comment_length = END.unpack(tail[-END.size :])
    if tag != b"PK\5\6" or entries != 1 or comment_length or start + length + END.size != file_size:
        return None
    if not CENTRAL.size <= length <= len(tail) - END.size:
        return None
    record = bytes(tail[-END.size - length : -END.size])
    fields = CENTRAL.unpack_from(record)
    tag, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = fields[:12]
    offset = fields[-1]
    if tag != b"PK\1\2" or method != _STORED or flags & 1 or packed != size or offset + LOCAL.size + size > start:
        return None
    name = record[CENTRAL.size : CENTRAL.size + name_length].decode("ascii", errors="replace")
    return Member(name, crc, size, offset, record[CENTRAL.size + name_length + extra_length :])


def read_local_lengths(content: NDArray[np.uint8], offset: int) -> tuple[int, int, int]:
    """Return the bytes of the three parts before a member's content: the record, the name, the extra field."""
    tag, *_, name_length, extra_length = LOCAL.unpack_from(content.data, offset)
    if tag != b"PK\3\4":
        raise ValueError("no zip member where the directory says")
    return LOCAL.size, name_length, extra_length


def as_array(stored: NDArray[np.uint8]) -> NDArray[Any]:
    """Return the array in the bytes of a npy file, as a view of them."""
    start = bytes(stored[:12])
    if start[:6] != np.lib.format.MAGIC_PREFIX or len(start) < 12:
        raise ValueError("not an array")
    lead, form = (10, "<H") if start[6] == 1 else (12, "<I")
    (length,) = struct.unpack_from(form, start, 8)
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"array header of {length} bytes")
    shape, fortran_order, dtype = _parse_header(bytes(stored[: lead + length]))
    content = stored[lead + length :]
    if dtype.hasobject or int(np.prod(shape, dtype=object)) * dtype.itemsize != len(content):
        raise ValueError(f"{len(content)} bytes of content do not make a {dtype} array of shape {list(shape)}")
    array = np.frombuffer(content, dtype) if dtype.itemsize else np.empty(0, dtype)
    return array.reshape(shape, order="F" if fortran_order else "C")


@lru_cache(maxsize=256)
def _parse_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Parse a npy header. Cached: all results of a run share one, and parsing costs more than reading the file."""
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream, max_header_size=_MAX_HEADER_BYTES)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream, max_header_size=_MAX_HEADER_BYTES)
    raise ValueError(f"array format {version[0]}.{version[1]}")
