"""Build files as a JSON Schema, for editors: it completes keys and values and shows what each is for.

It is looser than `load_build_file` where that compares keys with one another; what loads is valid here. All but the
ops of the preprocessing comes from the declarations in `sections.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.keys import Below, Key, declarations
from pipeline.config.kinds import SIDE, Schema
from pipeline.config.sections import Sections
from pipeline.config.vdsp import ResizeFilter

_TRIPLE: Schema = {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}


def build_file_schema() -> Schema:
    """Return the schema, draft 2020-12, as plain values."""
    schema = _properties(Sections)
    dataset = schema["properties"]["dataset"]["properties"]
    for spelling in ("process_ops", "transform_ops"):
        dataset[spelling]["items"] = {"oneOf": list(_ops())}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "build file of the int8 pipeline",
        "type": "object",
        **schema,
        "additionalProperties": False,
    }


def key_names(schema: Schema | None = None, prefix: str = "") -> Iterator[str]:
    """Return the dotted name of each key that holds a value: what `--set` takes."""
    for name, below in (schema or build_file_schema())["properties"].items():
        if "properties" in below:
            yield from key_names(below, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def lookup(key: str) -> Schema:
    """Return what the schema says of a dotted key; nothing where there is no such key."""
    schema = build_file_schema()
    for part in key.split("."):
        schema = schema.get("properties", {}).get(part, {})
    return schema


def values(key: str) -> list[str]:
    """Return the values that a key chooses from, or none where it takes any."""
    schema = lookup(key)
    found = schema.get("enum") or (["true", "false"] if schema.get("type") == "boolean" else [])
    return [str(value) for value in found if value is not None]


def plain(value: object) -> object:
    """Return a default as YAML and JSON have it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _properties(dataclass_: Any) -> Schema:
    """Return the part of the schema that is of the keys of a dataclass."""
    properties: dict[str, Schema] = {}
    required = []
    for name, declared in declarations(dataclass_):
        if declared.is_required:
            required.append(name)
        if isinstance(declared, Below):
            properties[name] = _section(declared)
        else:
            properties |= dict.fromkeys((name, declared.also) if declared.also else (name,), _key(declared))
    return {"properties": properties, **({"required": required} if required else {})}


def _section(declared: Below) -> Schema:
    return {
        "type": "object" if declared.is_required else ["object", "null"],
        "description": declared.meaning,
        **_properties(declared.keys),
        "additionalProperties": bool(declared.unused),  # keys of the vendor's, without effect
    }


def _key(declared: Key) -> Schema:
    schema = dict(declared.kind.schema())
    if declared.takes_null and "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    elif declared.takes_null:
        schema["type"] = [schema["type"], "null"]
    elif not declared.is_required:
        schema["default"] = plain(declared.default)
    if declared.example is not None:
        schema["examples"] = [yaml.safe_load(declared.example)]
    flag = f" ({declared.flag})" if declared.flag is not None else ""
    return {**schema, "description": f"{declared.meaning}{flag}"}


def _ops() -> Iterator[Schema]:
    pair = {"type": "array", "items": SIDE, "minItems": 2, "maxItems": 2}
    filters = {"enum": [*(member.value for member in ResizeFilter), None]}
    yield _op("DecodeImage")
    yield _op("Resize", {"size": {"anyOf": [SIDE, pair]}, "interpolation": filters}, ["size"])
    yield _op("CenterCrop", {"crop_size": {"anyOf": [SIDE, pair]}}, ["crop_size"])
    yield _op("Normalize", {"mean": _TRIPLE, "std": _TRIPLE, "div255": {"type": "boolean"}}, ["mean", "std"])
    yield _op("ToTensor")
    yield _op("CvtColor", {"code": {"enum": ["COLOR_RGB2BGR", "COLOR_BGR2RGB"]}}, ["code"])
    yield {**_op("CustomFunc"), "additionalProperties": True}  # loads; a build says what to give in its place


def _op(name: str, properties: Mapping[str, Schema] | None = None, required: Iterable[str] = ()) -> Schema:
    return {
        "type": "object",
        "properties": {"type": {"const": name}, **(properties or {})},
        "required": ["type", *required],
        "additionalProperties": False,
    }
