"""Messages of protobuf that no package at hand has, made from a short notation of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto


def make_messages(package: str, messages: Mapping[str, str], enums: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Return message classes by name. They have a separate pool: a client in the same process may have the same ones.

    Args:
        package: of the names.
        messages: of each name the fields, `name:type=number`, with spaces between; `type*` is repeated. A type is one
            of protobuf's, a message or an enum.
        enums: of each name the values.
    """
    # Without syntax it would be proto2, whose fields track whether they were set.
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, values in enums.items():
        enum = file.enum_type.add(name=name)
        for value, index in values.items():
            enum.value.add(name=value, number=index)
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field in fields.split():
            field_name, _, kind = field.partition(":")
            kind, _, number = kind.partition("=")
            label = _Field.LABEL_REPEATED if kind.endswith("*") else _Field.LABEL_OPTIONAL
            added = message.field.add(name=field_name, number=int(number), label=label)
            kind = kind.rstrip("*")
            if kind in messages or kind in enums:
                added.type = _Field.TYPE_MESSAGE if kind in messages else _Field.TYPE_ENUM
                added.type_name = f".{package}.{kind}"
            else:
                added.type = _Field.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = message_factory.GetMessageClassesForFiles([file.name], pool)
    return {name.rpartition(".")[2]: each for name, each in made.items()}
