"""Forms with files (`multipart/form-data`), whose bodies are in memory as a whole, within the limit of every body.

Starlette's forms write files of more than a megabyte to disk; this reads them by the same parser, and copies each once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MOST_PARTS = 256
_MOST_HEADER = 8 * 1024  # bytes
_NO_NAME = "image"


class FormError(ValueError):
    """A body is no form. The text is for the client."""


def read_files(body: bytes, content_type: str) -> list[tuple[str, bytes]]:
    """Return the files of a form with their names, in its order; fields without a file name are left out.

    Raises:
        FormError: it is no such form, is cut, or has very many parts.
    """
    boundary = parse_options_header(content_type.encode("latin-1", "replace"))[1].get(b"boundary")
    if not boundary:
        raise FormError("content-type: multipart/form-data without a boundary")
    parts = _Parts()
    try:
        parser = MultipartParser(boundary, parts.callbacks(), max_header_size=_MOST_HEADER)
        parser.write(body)
    except FormParserError as err:
        raise FormError(f"the form cannot be read: {err}") from None
    if not parts.is_whole:
        raise FormError("the form is cut: it does not end in its boundary")
    return parts.files


class _Parts:
    """Collects what the parser calls out."""

    def __init__(self) -> None:
        self.files: list[tuple[str, bytes]] = []
        self.is_whole = False
        self._count = 0
        self._begin()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_to_key,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._key, self._value = b"", b""
        self._name: str | None = None
        self._content: list[bytes] = []

    def _add_to_key(self, data: bytes, start: int, end: int) -> None:
        self._key += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._key.strip().lower() == b"content-disposition":
            name = parse_options_header(self._value)[1].get(b"filename")
            self._name = None if name is None else name.decode("utf-8", "replace") or _NO_NAME
        self._key, self._value = b"", b""

    def _add(self, data: bytes, start: int, end: int) -> None:
        self._content.append(data[start:end])

    def _end(self) -> None:
        self._count += 1
        if self._count > _MOST_PARTS:
            raise FormError(f"the form has more than {_MOST_PARTS} parts")
        if self._name is not None:
            self.files.append((self._name, b"".join(self._content)))

    def _finish(self) -> None:
        self.is_whole = True
