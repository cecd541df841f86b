"""Protobuf's wire format, for files and messages that are looked through or put together without a parser.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import IO

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types
LONGEST_VARINT = 10  # bytes


def as_varint(number: int) -> bytes:
    """Return a number, not below zero, as it is written."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def head(field: int, size: int) -> bytes:
    """Return what stands before the content of a field that has a length: its number and wire type, and its bytes."""
    return as_varint(field << 3 | LENGTH) + as_varint(size)


def read_varint(stream: IO[bytes]) -> int:
    """Return the number that comes next.

    Raises:
        ValueError: it is cut short, or does not end.
    """
    value = 0
    for place in range(LONGEST_VARINT):
        byte = stream.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << 7 * place
        if byte[0] < 0x80:
            return value
    raise ValueError("a number that does not end")
