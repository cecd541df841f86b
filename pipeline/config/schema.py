"""Converts plain values to typed ones, and reports every fault with its line.

A `Document` is what `documents.py` makes of a file: plain values and the line of each key. A `Section` reads one
mapping of it, key by key. An error becomes a `Fault` of the document and reading continues, so that a user gets all
of them at once.
Nothing is coerced: `"1"` is not 1, `1` is not true, and null is a value only where a key may be absent.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import TypeVar

from pipeline.errors import ConfigError

KeyPath = tuple[str | int, ...]
T = TypeVar("T")
E = TypeVar("E", bound=Enum)

MISSING = object()


@dataclass(frozen=True)
class Fault:
    """One error: its file and line (or flag), the key, what was found and what was wanted."""

    path: str  # a file, or a flag such as "--set"
    line: int | None  # 1-based; None for JSON and flags
    key: str  # dotted, such as "backend.quantize.percentile"; "" for the file as a whole
    message: str

    def __str__(self) -> str:
        if self.path.startswith("--") and self.path != "--set":
            where = self.path  # a dedicated flag already names the key
        elif self.line is not None:
            where = f"{self.path}:{self.line} {self.key}"
        else:
            where = f"{self.path}{' ' if self.path == '--set' else ':'}{self.key}"
        return f"{where.rstrip(' :')}: {self.message}"


def _exponent_hint(value: object) -> str:
    """Return the plain form of a number that YAML 1.1 reads as text, as 1e-3: it wants a point and a sign there."""
    if not isinstance(value, str) or not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d{1,2}", value):
        return ""
    return f"; YAML reads that as text: write {Decimal(value):f}"


def raise_faults(faults: Collection[Fault]) -> None:
    """Raise one ConfigError with a line for each fault, in file order; do nothing where there is none."""
    if faults:
        ordered = sorted(faults, key=lambda fault: (fault.path.startswith("--"), fault.path, fault.line or 0))
        raise ConfigError("\n".join(str(fault) for fault in ordered))


@dataclass
class Document:
    """The plain values of a file, with the line of each."""

    path: str = "build file"  # as shown to the user
    values: dict[str, object] = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)  # 1-based line of each key
    flags: dict[KeyPath, str] = field(default_factory=dict)  # keys given on the command line -> the flag that did
    faults: list[Fault] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)  # what was accepted without effect, a line each

    def at(self, key: KeyPath, message: str) -> Fault:
        """A fault of `key`, at its own line, or where it is absent at the line of the section that lacks it."""
        name = dotted(key)
        prefixes = [key[:length] for length in range(len(key), 0, -1)]
        flag = next((self.flags[prefix] for prefix in prefixes if prefix in self.flags), None)
        if flag is not None:
            return Fault(flag, None, name, message)
        if not self.lines:
            return Fault(self.path, None, name, message)
        return Fault(
            self.path, next((self.lines[prefix] for prefix in prefixes if prefix in self.lines), 1), name, message
        )

    def fault(self, key: KeyPath, message: str) -> None:
        self.faults.append(self.at(key, message))

    def root(self) -> Section:
        return Section(self, (), self.values)


class Section:
    """One mapping of a document, read key by key. `done` reports the keys that were not read.

    Each reader returns its default where the key is absent or wrong. Null is accepted where the default is None.
    """

    def __init__(self, document: Document, key: KeyPath, values: Mapping[str, object]) -> None:
        self.document = document
        self.key = key
        self.values = values
        self.known: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def fault(self, key: str, message: str) -> None:
        self.document.fault((*self.key, key), message)

    def fault_below(self, key: str, below: str, message: str) -> None:
        self.document.fault((*self.key, key, below), message)

    def take(self, key: str, *, required: bool = False) -> object:
        """The value as it is, or MISSING."""
        self.known.append(key)
        value = self.values.get(key, MISSING)
        if required and value is MISSING:
            self.fault(key, "missing")
        return value

    def spelling(self, key: str, other: str) -> str | None:
        """The spelling of a key that counts: what the command line gives replaces what the file has under either.

        None where both come from the file, or both from the command line.
        """
        given = [each for each in (key, other) if each in self]
        if len(given) < 2:
            return given[0] if given else key
        flagged = [each for each in given if (*self.key, each) in self.document.flags]
        if len(flagged) != 1:
            return None
        self.known += given
        return flagged[0]

    def read(self, key: str, default: T, types: type | tuple[type, ...], wanted: str, required: bool) -> object:
        """The value if it is one of `types`, else the default and (unless it may be absent) a fault."""
        value = self.take(key, required=required)
        if value is MISSING or (value is None and default is None and not required):
            return default
        if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
            self.fault(key, f"expected {wanted}, got {shown(value)}{'' if types is str else _exponent_hint(value)}")
            return default
        return value

    def text(self, key: str, default: T, *, required: bool = False) -> str | T:
        value = self.read(key, default, str, "text", required)
        if value == "" and key in self:
            self.fault(key, "expected text, got ''")
            return default
        return value  # type: ignore[return-value]  # `read` has checked it

    def path(self, key: str, default: T) -> Path | T:
        value = self.read(key, default, (str, Path), "a path", False)
        if value == "":
            self.fault(key, "expected a path, got ''")
            return default
        return Path(value) if isinstance(value, str) else value  # type: ignore[return-value]

    def boolean(self, key: str, default: bool) -> bool:
        return bool(self.read(key, default, bool, "true or false", False))

    def integer(self, key: str, default: T, *, low: int, high: int | None = None, required: bool = False) -> int | T:
        wanted = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
        value = self.read(key, default, int, wanted, required)
        if isinstance(value, int) and value is not default and (value < low or (high is not None and value > high)):
            self.fault(key, f"expected {wanted}, got {shown(value)}")
            return default
        return value  # type: ignore[return-value]

    def number(self, key: str, default: T) -> float | T:
        value = self.read(key, default, (int, float), "a number", False)
        if value is default:
            return default
        if not is_number(value):
            self.fault(key, f"expected a number, got {shown(value)}")
            return default
        return float(value)  # type: ignore[arg-type]

    def number_within(self, key: str, default: T, wanted: str, fits: Callable[[float], bool]) -> float | T:
        """A finite number that fits; `wanted` says which do."""
        value = self.read(key, default, (int, float), wanted, False)
        if value is default:
            return default
        if not is_number(value) or not fits(value):  # type: ignore[arg-type]
            self.fault(key, f"expected {wanted}, got {shown(value)}")
            return default
        return float(value)  # type: ignore[arg-type]

    def numbers(self, key: str, default: tuple[float, ...], *, positive: bool = False) -> tuple[float, ...]:
        """A list of as many finite numbers as the default has."""
        value = self.take(key)
        if value is MISSING:
            return default
        fits = isinstance(value, list) and len(value) == len(default) and all(is_number(item) for item in value)
        if not isinstance(value, list) or not fits or (positive and min(value) <= 0):
            wanted = f"{len(default)} numbers{' > 0' if positive else ''}"
            self.fault(key, f"expected {wanted}, got {shown(value)}")
            return default
        return tuple(float(item) for item in value)

    def choice(self, key: str, allowed: Iterable[E], default: T, *, required: bool = False) -> E | T:
        """The member of `allowed` whose value the file names."""
        members = {str(member.value): member for member in allowed}
        wanted = "one of " + ", ".join(members) if len(members) > 1 else f"'{next(iter(members))}'"
        value = self.read(key, default, str, wanted, required)
        if not isinstance(value, str):
            return default
        if value not in members:
            self.fault(key, f"expected {wanted}, got {shown(value)}{did_you_mean(value, members)}")
            return default
        return members[value]

    def section(self, key: str, *, required: bool = False) -> Section:
        """A mapping below this one; absent and null are an empty one."""
        value = self.take(key, required=required)
        if value is MISSING or value is None:
            value = {}
        elif not isinstance(value, dict):
            self.fault(key, f"expected a section of keys, got {shown(value)}")
            value = {}
        return Section(self.document, (*self.key, key), value)

    def sections(self, key: str) -> list[Section]:
        """A list of mappings; absent and null are an empty one."""
        value = self.take(key)
        if value is MISSING or value is None:
            return []
        if not isinstance(value, list):
            self.fault(key, f"expected a list of sections, got {shown(value)}")
            return []
        found = []
        for index, item in enumerate(value):
            if isinstance(item, dict):
                found.append(Section(self.document, (*self.key, key, index), item))
            else:
                self.document.fault((*self.key, key, index), f"expected a section of keys, got {shown(item)}")
        return found

    def ignored(self, keys: Iterable[str]) -> list[str]:
        """Accept keys without effect here; return one line for each that the file has."""
        return [f"{dotted((*self.key, key))} has no effect here" for key in keys if self.take(key) is not MISSING]

    def done(self) -> None:
        for key in self.values:
            if key not in self.known:
                hint = did_you_mean(key, self.known) or "; known here: " + ", ".join(dict.fromkeys(self.known))
                self.fault(key, f"unknown key{hint}")


def dotted(key: KeyPath) -> str:
    return ".".join(str(part) for part in key)


def is_number(value: object) -> bool:
    """A finite int or float; true and false are none."""
    # The bound is that of a float: an int above it cannot become one. NaN fails every comparison.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1.7e308 <= value <= 1.7e308


def shown(value: object) -> str:
    """A value as the user wrote it, on one line, short."""
    if isinstance(value, str):
        text = repr(value)
    else:
        try:
            text = json.dumps(value, ensure_ascii=False, default=str)
        except ValueError:  # an integer of more digits than Python prints
            text = "a number too long to show"
    return text if len(text) <= 80 else text[:77] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
