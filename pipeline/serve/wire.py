"""Protobuf's wire format, as far as large fields are taken out of a message, or added, without further copies.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_LONGEST_VARINT = 10  # bytes
_MOST_FIELDS = 100  # of a message that is looked through here; more take long


def take_out(field: int, message: bytes) -> tuple[bytes, list[memoryview]]:
    """Return a message without a field of bytes, and the values of that field, views of the message.

    Args:
        field: its number, on the message's own level.

    Returns:
        The message as it is, and no values, where it is damaged, so that its parser says so, or has very many fields.
    """
    values: list[memoryview] = []
    kept: list[memoryview] = []
    view, at, kept_from = memoryview(message), 0, 0
    try:
        for _ in range(_MOST_FIELDS):
            if at == len(message):
                return (b"".join([*kept, view[kept_from:]]), values) if values else (message, [])
            start = at
            tag, at = _varint(message, at)
            wire_type = tag & 7
            if wire_type == _BYTES:
                size, at = _varint(message, at)
                at += size
            elif wire_type == _VARINT:
                _, at = _varint(message, at)
            elif wire_type in (_FIXED64, _FIXED32):
                at += 8 if wire_type == _FIXED64 else 4
            else:  # groups are of proto2
                break
            if at > len(message):
                break
            if tag == field << 3 | _BYTES:
                values.append(view[at - size : at])
                kept.append(view[kept_from:start])
                kept_from = at
    except IndexError:
        pass
    return message, []


def before(field: int, content: bytes) -> bytes:
    """Return what stands before a field of bytes in a message: its number and its size."""
    return _as_varint(field << 3 | _BYTES) + _as_varint(len(content))


def _as_varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place behind it; raise IndexError where the message ends in it."""
    first = message[at]
    if first < 0x80:
        return first, at + 1
    value = first & 0x7F
    for place in range(1, _LONGEST_VARINT):
        byte = message[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise IndexError("a number without end")
