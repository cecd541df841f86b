"""Protobuf's wire format, as far as large fields are taken out of a message, or added, without further copies.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from pipeline.protobuf_wire import FIXED32, FIXED64, LENGTH, LONGEST_VARINT, VARINT, head

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
            if wire_type == LENGTH:
                size, at = _varint(message, at)
                at += size
            elif wire_type == VARINT:
                _, at = _varint(message, at)
            elif wire_type in (FIXED64, FIXED32):
                at += 8 if wire_type == FIXED64 else 4
            else:  # groups are of proto2
                break
            if at > len(message):
                break
            if tag == field << 3 | LENGTH:
                values.append(view[at - size : at])
                kept.append(view[kept_from:start])
                kept_from = at
    except IndexError:
        pass
    return message, []


def before(field: int, content: bytes) -> bytes:
    """Return what stands before a field of bytes in a message: its number and its size."""
    return head(field, len(content))


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place behind it; raise IndexError where the message ends in it."""
    first = message[at]
    if first < 0x80:
        return first, at + 1
    value = first & 0x7F
    for place in range(1, LONGEST_VARINT):
        byte = message[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise IndexError("a number without end")
