"""Types of the values of a build file's keys: how each is read, and its schema, help and documentation."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pipeline.config.schema import MISSING, Section, is_number, shown

Schema = dict[str, Any]

MAX_SIDE = 16384  # px; no classifier has larger inputs, and arrays of a mistyped size would exhaust the memory
SIDE: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_SIDE}
SHAPE: Schema = {  # one input by its name, channels first or last
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": {
        "type": "array",
        "anyOf": [
            {"prefixItems": [{"enum": [1, -1]}, {"const": 3}, SIDE, SIDE]},
            {"prefixItems": [{"enum": [1, -1]}, SIDE, SIDE, {"const": 3}]},
        ],
        "minItems": 4,
        "maxItems": 4,
    },
}


class Kind:
    """Which values a key takes. Faults go to the section's document, and the default is read in place of the value."""

    def read(self, section: Section, name: str, default: Any, required: bool) -> Any:
        """Return the checked value of a key, or the default where it is absent or wrong."""
        raise NotImplementedError

    def schema(self) -> Schema:
        """Return the JSON Schema of the values but null."""
        raise NotImplementedError

    def values(self) -> str:
        """Return a short description of the values; empty where the key's meaning gives it."""
        return ""

    def parse(self, text: str) -> object:
        """Return the plain value of a flag's text; an invalid text is left for `read` to report."""
        return text


@dataclass(frozen=True)
class Text(Kind):
    """Any text, or one of a form."""

    pattern: str | None = None  # a regular expression of the whole text
    form: str = ""  # a description of the pattern

    def read(self, section: Section, name: str, default: Any, required: bool) -> Any:
        value = section.text(name, default, required=required)
        if value and value != default and self.pattern and not re.fullmatch(self.pattern, value):
            section.fault(name, f"expected {self.form}, got {shown(value)}")
        return value

    def schema(self) -> Schema:
        pattern = {"pattern": f"^{self.pattern}$"} if self.pattern else {}
        return {"type": "string", "minLength": 1, **pattern}

    def values(self) -> str:
        return self.form


@dataclass(frozen=True)
class PathTo(Kind):
    """A path, relative to the current folder."""

    def read(self, section: Section, name: str, default: Any, required: bool) -> Any:
        return section.path(name, default)

    def schema(self) -> Schema:
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True)
class Choice(Kind):
    """One member of an enum, written as its value."""

    members: tuple[Enum, ...]
    fallback: Enum | None = None  # used to continue reading where a required key is absent or wrong

    def read(self, section: Section, name: str, default: Any, required: bool) -> Any:
        return section.choice(name, self.members, self.fallback if required else default, required=required)

    def schema(self) -> Schema:
        return {"enum": [member.value for member in self.members]}

    def values(self) -> str:
        return ", ".join(str(member.value) for member in self.members)


def choice(members: Iterable[Enum], fallback: Enum | None = None) -> Choice:
    return Choice(tuple(members), fallback)


@dataclass(frozen=True)
class Switch(Kind):
    """true or false."""

    def read(self, section: Section, name: str, default: Any, required: bool) -> Any:
        return section.boolean(name, default)

    def schema(self) -> Schema:
        return {"type": "boolean"}

    def values(self) -> str:
        return "true, false"

    def parse(self, text: str) -> object:
        return {"true": True, "false": False}.get(text, text)


@dataclass(frozen=True)
class Integer(Kind):
    low: int

    def read(self, section: Section, name: str, default: Any, required: bool) -> Any:
        return section.integer(name, default, low=self.low, required=required)

    def schema(self) -> Schema:
        return {"type": "integer", "minimum": self.low}

    def values(self) -> str:
        return f">= {self.low}"

    def parse(self, text: str) -> object:
        try:
            return int(text)
        except ValueError:
            return text


@dataclass(frozen=True)
class Number(Kind):
    """A finite number of an interval."""

    above: float | None = None  # the bound itself is left out
    least: float | None = None  # the bound itself is taken
    most: float | None = None  # likewise
    unit: str = ""  # as errors say it

    def read(self, section: Section, name: str, default: Any, required: bool) -> Any:
        if self.unit:
            return section.number_within(name, default, f"{self.unit} {self._where()}", self._fits)
        value = section.number(name, default)
        if value is default or self._fits(value):
            return value
        section.fault(name, f"must be {self._where()}, got {shown(section.values[name])}")
        return default

    def _fits(self, value: float) -> bool:
        return (
            is_number(value)
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
        )

    def _where(self) -> str:
        if self.most is None:
            return f"> {self.above:g}" if self.above is not None else f">= {self.least:g}"
        low = f"({self.above:g}" if self.above is not None else f"[{self.least:g}"
        return f"in {low}, {self.most:g}]"

    def schema(self) -> Schema:
        bounds = {"exclusiveMinimum": self.above, "minimum": self.least, "maximum": self.most}
        return {"type": "number", **{word: bound for word, bound in bounds.items() if bound is not None}}

    def values(self) -> str:
        return self._where()

    def parse(self, text: str) -> object:
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
        return text


@dataclass(frozen=True)
class Layers(Kind):
    """Layers of a network: all by number from 0, or all by name or pattern."""

    def read(self, section: Section, name: str, default: Any, required: bool) -> Any:
        value = section.take(name)
        if value is MISSING or value is None:
            return default
        items = value if isinstance(value, list) else [None]
        if all(type(item) is int and item >= 0 for item in items) or all(isinstance(item, str) for item in items):
            return tuple(items)
        section.fault(name, f"expected a list of numbers >= 0 or a list of names, got {shown(value)}")
        return default

    def schema(self) -> Schema:
        items = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]}
        return {"type": ["array", "null"], "items": items}

    def values(self) -> str:
        return "numbers from 0, or names and patterns"


@dataclass(frozen=True)
class Unused(Kind):
    """A section of keys for the vendor's tools only: each is accepted and reported."""

    def read(self, section: Section, name: str, default: Any, required: bool) -> Any:
        below = section.section(name)
        section.document.notices.extend(below.ignored(below.values))
        return below.values

    def schema(self) -> Schema:
        return {"type": ["object", "null"]}


@dataclass(frozen=True)
class ByHand(Kind):
    """A value that its section's reader handles; only its schema is declared here."""

    schema_: Schema = field(hash=False)
    words: str = ""

    def schema(self) -> Schema:
        return self.schema_

    def values(self) -> str:
        return self.words

    def parse(self, text: str) -> object:
        return Integer(1).parse(text)  # --size
