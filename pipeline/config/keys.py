"""How a key of a build file is declared: once, as the metadata of a dataclass field.

Reader (`read_keys`), JSON Schema, `config keys`, the table in docs/build-files.md and flags of the command line all
come from these declarations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.config.kinds import ByHand, Kind
from pipeline.config.schema import Section, dotted

REQUIRED = object()  # in place of a default
_DECLARED = "declared"


@dataclass(frozen=True)
class Key:
    """What is declared of a key."""

    kind: Kind
    meaning: str  # one line of Markdown
    default: Any  # REQUIRED: there is none
    flag: str | None = None  # of `build`, where the key has one
    metavar: str | None = None  # of the flag
    flag_means: str | None = None  # in place of `meaning`, where the flag sets one value or a part of it
    example: str | None = None  # a value, in YAML
    misspelt: str | None = None  # read where the key itself is absent, or on the command line
    also: str | None = None  # a second spelling

    @property
    def is_required(self) -> bool:
        return self.default is REQUIRED

    @property
    def takes_null(self) -> bool:
        return self.default is None

    def read(self, section: Section, name: str) -> Any:
        if self.misspelt is not None and section.spelling(name, self.misspelt) == self.misspelt:
            section.document.notices.append(f"{dotted((*section.key, self.misspelt))} is read as {name}")
            name = self.misspelt
        default = "" if self.is_required else self.default
        return self.kind.read(section, name, default, self.is_required)


@dataclass(frozen=True)
class Below:
    """What is declared of a section: the dataclass of its keys."""

    keys: Any  # a dataclass
    meaning: str
    unused: tuple[str, ...] = ()  # the vendor's keys without effect here: accepted and reported
    is_optional: bool = False  # null where the file does not have it
    is_required: bool = False

    def read(self, parent: Section, name: str) -> Any:
        """Return the dataclass, filled from the document."""
        if self.is_optional and parent.values.get(name) is None:
            parent.take(name)
            return None
        section = parent.section(name)
        values = read_keys(self.keys, section)
        section.document.notices.extend(section.ignored(self.unused))
        section.done()
        return self.keys(**values)


def key(default: object, kind: Kind, meaning: str, **more: Any) -> Any:
    """Declare a key as a field of a dataclass; `more` as in `Key`."""
    declared = Key(kind, meaning, default, **more)
    given: dict[str, Any] = {"default": default}
    if declared.is_required:
        given = {}
    elif isinstance(default, dict):
        given = {"default_factory": dict}
    return field(metadata={_DECLARED: declared}, **given)


def section(keys: Any, meaning: str, unused: tuple[str, ...] = (), *, required: bool = False) -> Any:
    """Declare a section as a field of a dataclass."""
    below = Below(keys, meaning, unused, is_required=required)
    return field(metadata={_DECLARED: below}, **({} if required else {"default": keys()}))


def optional_section(keys: Any, meaning: str) -> Any:
    """Declare a section that is None where the file does not have it."""
    return field(metadata={_DECLARED: Below(keys, meaning, is_optional=True)}, default=None)


def declarations(dataclass_: Any) -> Iterator[tuple[str, Key | Below]]:
    """Yield name and declaration of each key and section of a dataclass, in the order of its fields."""
    for item in fields(dataclass_):
        if _DECLARED in item.metadata:
            yield item.name, item.metadata[_DECLARED]


def walk(dataclass_: Any, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Yield dotted name and declaration of each key of a dataclass and of the sections below it."""
    for name, declared in declarations(dataclass_):
        if isinstance(declared, Below):
            yield from walk(declared.keys, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", declared


def read_keys(dataclass_: Any, values: Section) -> dict[str, Any]:
    """Return the fields of a dataclass by name, read from a section; those read by hand are left out."""
    found = {}
    for name, declared in declarations(dataclass_):
        if isinstance(declared, Below) or not isinstance(declared.kind, ByHand):
            found[name] = declared.read(values, name)
    return found
