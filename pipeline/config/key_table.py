"""The keys of a build file for people: the lines of `config keys`, and the table in docs/build-files.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config import json_schema
from pipeline.config.keys import Below, Key, declarations
from pipeline.config.sections import Sections, declared_keys
from pipeline.errors import DataError

BEGIN = "<!-- made by `python -m pipeline config docs docs/build-files.md` from pipeline/config/sections.py -->"
END = "<!-- end of the table -->"


def lines() -> Iterator[str]:
    """Yield a line for each key: its name, what it means, its default and its values."""
    for name, declared in declared_keys():
        yield _line(name, declared)
        if declared.also is not None:
            yield _line(f"{name.rpartition('.')[0]}.{declared.also}", declared)


def _line(name: str, declared: Key) -> str:
    values = declared.kind.values()
    default = "" if declared.is_required else f" (default: {_default(declared)})"
    flag = f" ({_flag(declared)} of build)" if declared.flag else ""
    return f"{name:38} {declared.meaning}{flag}{default}{f': {values}' if values else ''}"


def table() -> str:
    """Return the table in Markdown, between its markers."""
    rows = ["| key | values | default | what it does |", "|---|---|---|---|", *_rows(Sections, "")]
    return "\n".join([BEGIN, "", *rows, "", END])


def _rows(dataclass_: Any, prefix: str) -> Iterator[str]:
    sections = []
    for name, declared in declarations(dataclass_):
        if isinstance(declared, Below):
            sections.append((f"{prefix}{name}", declared))
        else:
            yield _row(name, declared)
    for name, below in sections:
        yield f"| **{name}** | | {'`null`' if below.is_optional else ''} | {below.meaning} |"
        yield from _rows(below.keys, f"{name}.")


def _row(name: str, declared: Key) -> str:
    default = "needed" if declared.is_required else f"`{_default(declared)}`"
    flag = f" (`{_flag(declared)}`)" if declared.flag else ""
    example = f". Example: `{declared.example}`" if declared.example else ""
    also = f"; also spelled {declared.also}" if declared.also else ""
    return f"| `{name}` | {declared.kind.values()} | {default} | {declared.meaning}{flag}{also}{example} |"


def _flag(declared: Key) -> str:
    return f"{declared.flag} {declared.metavar or ''}".rstrip()


def _default(declared: Key) -> str:
    value = json_schema.plain(declared.default)
    return value if isinstance(value, str) else json.dumps(value)


def renew(path: Path) -> bool:
    """Put the table between the markers of a page; return whether that changed it.

    Raises:
        DataError: the page cannot be read, or has no markers.
    """
    try:
        page = path.read_text(encoding="utf-8")
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror}); give docs/build-files.md") from err
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{path}: has no lines {BEGIN!r} and {END!r} with the table between them")
    renewed = before + table() + after
    if renewed != page:
        path.write_text(renewed, encoding="utf-8")
    return renewed != page
