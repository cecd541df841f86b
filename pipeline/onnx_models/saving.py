"""Writes an ONNX model to a file with little memory beside the model's own.

A serializer makes all of the file in memory, in a buffer that doubles as it grows: a VGG of 553 MB took 2.9 GB. Here
large tensors are written one by one; the bytes of the file are the same.

Format: fields of a protobuf message stand one behind the other, each in the form of its own serialized message
(https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import Message

from pipeline.errors import DataError
from pipeline.onnx_models.graphs import is_large
from pipeline.protobuf_wire import head

_LARGEST_FILE = (1 << 31) - 1  # bytes that readers of protobuf take
_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_RAW_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model as `onnx.save` does, to the byte.

    Takes memory for one tensor beside the model; parts of a file that could not be written completely stay.

    Args:
        path: of the file, which is replaced. Its folder exists.

    Raises:
        DataError: the file would be larger than 2 GiB, which no reader takes.
        OSError: it cannot be written.
    """
    size = sum(len(part) for part in _model(model))
    if size > _LARGEST_FILE:
        raise DataError(
            f"the model takes {size >> 20} MiB as an ONNX file, which can have 2047; build a smaller network"
        )
    with path.open("wb") as stream:
        for part in _model(model):
            stream.write(part)


def _model(model: onnx.ModelProto) -> Iterator[bytes]:
    """Yield the serialized model piece by piece."""
    length = sum(len(part) for part in _graph(model.graph))
    yield _some_fields(model, 1, _GRAPH).SerializeToString()
    if model.HasField("graph"):
        yield head(_GRAPH, length)
        yield from _graph(model.graph)
    yield _some_fields(model, _GRAPH + 1).SerializeToString()


def _graph(graph: onnx.GraphProto) -> Iterator[bytes]:
    yield _some_fields(graph, 1, _INITIALIZER).SerializeToString()
    for tensor in graph.initializer:
        if is_large(tensor) and tensor.HasField("raw_data"):
            yield from _large_tensor(tensor)
        else:
            content = tensor.SerializeToString()
            yield head(_INITIALIZER, len(content)) + content
    yield _some_fields(graph, _INITIALIZER + 1).SerializeToString()


def _large_tensor(tensor: onnx.TensorProto) -> Iterator[bytes]:
    content = tensor.raw_data
    before = _some_fields(tensor, 1, _RAW_DATA).SerializeToString() + head(_RAW_DATA, len(content))
    after = _some_fields(tensor, _RAW_DATA + 1).SerializeToString()
    yield head(_INITIALIZER, len(before) + len(content) + len(after)) + before
    yield content
    yield after


def _some_fields(message: Message, first: int, end: int | None = None) -> Any:
    """Return a message with some of the fields of another: of numbers from `first` up to below `end`."""
    part = type(message)()
    for field in message.DESCRIPTOR.fields:
        if field.number < first or (end is not None and field.number >= end):
            continue
        value = getattr(message, field.name)
        if field.is_repeated:
            getattr(part, field.name).extend(value)
        elif message.HasField(field.name):
            if isinstance(value, Message):
                getattr(part, field.name).CopyFrom(value)
            else:
                setattr(part, field.name, value)
    return part
