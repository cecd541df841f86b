"""Forms with files (`multipart/form-data`), whose bodies are in memory as a whole, within the limit of every body.

A parser of streams writes files beyond a megabyte to disk, and takes parts up one piece at a time.
Source: RFC 7578 and RFC 2046, section 5.1.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

_MOST_PARTS = 256
_MOST_HEAD = 8 * 1024  # bytes of a part's headers
_BOUNDARY = re.compile(r";[ \t]*boundary=(?:\"([^\"]{1,200})\"|([^\s;\"]{1,200}))", re.IGNORECASE)
# A value in quotes, in which browsers write %22 for a quote and others a backslash before it; or a plain one.
_PARAMETER = re.compile(r";[ \t]*([\w*-]{1,40})[ \t]*=[ \t]*(?:\"((?:[^\"\\]|\\.)*)\"|([^;\s\"]*))")
_BLANK_LINE = b"\r\n\r\n"


class FormError(ValueError):
    """A body is no form. The text is for the client."""


def read_files(body: bytes, content_type: str) -> list[tuple[str, bytes]]:
    """Return the files of a form with their names, in its order; fields without a file name are left out.

    Raises:
        FormError: it is no such form, is cut, or has very many parts.
    """
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise FormError("content-type: multipart/form-data without a boundary")
    delimiter = b"\r\n--" + (found[1] or found[2]).encode("latin-1", "replace")
    files: list[tuple[str, bytes]] = []
    # The first delimiter may have no line before it.
    at = len(delimiter) - 2 if body.startswith(delimiter[2:]) else _behind(body, delimiter, 0)
    for _ in range(_MOST_PARTS + 1):
        if body.startswith(b"--", at):
            return files
        begun = body.find(b"\r\n", at)
        if begun < 0 or body[at:begun].strip(b" \t"):
            raise FormError("the form has text behind a boundary")
        end = _behind(body, delimiter, begun)
        name, content = _part(body[begun + 2 : end - len(delimiter)])
        if name is not None:
            files.append((name or "image", content))
        at = end
    raise FormError(f"the form has more than {_MOST_PARTS} parts")


def _behind(body: bytes, delimiter: bytes, start: int) -> int:
    """Return the place behind the next delimiter."""
    found = body.find(delimiter, start)
    if found < 0:
        raise FormError("the form is cut: it does not end in its boundary")
    return found + len(delimiter)


def _part(part: bytes) -> tuple[str | None, bytes]:
    """Return a part's file name, None for a field, and its content."""
    if part.startswith(b"\r\n"):  # no headers
        return None, part[2:]
    head, blank, content = part.partition(_BLANK_LINE)
    if not blank or len(head) > _MOST_HEAD:
        raise FormError(f"the form has a part without an end of its headers in {_MOST_HEAD} bytes")
    for line in head.decode("utf-8", "replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            return _file_name(value), content
    return None, content


def _file_name(disposition: str) -> str | None:
    given = {key.lower(): (quoted, plain) for key, quoted, plain in _PARAMETER.findall(disposition)}
    if "filename*" in given:  # as some clients write names beyond ASCII, though forms have no use for it
        return unquote("".join(given["filename*"]).rpartition("'")[2])
    if "filename" not in given:
        return None
    quoted, plain = given["filename"]
    return re.sub(r'\\(["\\])', r"\1", quoted or plain).replace("%22", '"')
