"""What OpenVINO computes the float parts of a model in: float32, or bfloat16 where the model's file allows that.

bfloat16 has the range of float32, 8 bits of mantissa and half of the bytes: residual streams beside convolutions in
int8, whose time is memory traffic, take half as long. A search for a goal measures what that costs in accuracy, and
marks the model. CPUs that do not multiply bfloat16 compute such a model in float32, as ONNX Runtime does everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline.host import hardware
from pipeline.protobuf_wire import LENGTH, VARINT, read_varint

if TYPE_CHECKING:
    import onnx

BFLOAT16 = "int8_classifier_pipeline.bfloat16"  # metadata of a model whose float parts may be computed in it
_METADATA = 14  # field of a ModelProto


def allow_bfloat16(model: onnx.ModelProto) -> None:
    """Note in a model, in place, that its float parts may be computed in bfloat16."""
    if all(each.key != BFLOAT16 for each in model.metadata_props):
        model.metadata_props.add(key=BFLOAT16, value="allowed")


def computes_in_bfloat16(model: Path) -> bool:
    """Tell whether OpenVINO is to compute the float parts of an ONNX file in bfloat16 on this CPU."""
    if model.suffix != ".onnx" or not hardware.computes_bfloat16():
        return False
    with model.open("rb") as stream:
        return any(BFLOAT16.encode() in each for each in _metadata(stream))


def _metadata(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the entries of an ONNX file's metadata; the graph is skipped, and no library is needed to read them."""
    end = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    try:
        while stream.tell() < end:
            key, size = read_varint(stream), read_varint(stream)
            if key == _METADATA << 3 | LENGTH:
                yield stream.read(size)
            elif key & 7 == LENGTH:
                stream.seek(size, os.SEEK_CUR)
            elif key & 7 != VARINT:  # no ONNX file: whoever reads all of it says so
                return
    except ValueError:  # cut short, as well
        return
