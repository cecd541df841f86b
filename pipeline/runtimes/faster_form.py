"""The form in which ONNX Runtime runs a model file fastest on this CPU; made in memory, never on disk."""

from __future__ import annotations

import mmap
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from pipeline.host.hardware import instruction_sets
from pipeline.runtimes.amx import shift_weights
from pipeline.runtimes.float_form import CLIPPING, use_float_form
from pipeline.runtimes.own_placement import NODES, take_placement


def faster_form(path: Path) -> bytes | None:
    """Return the model of a file in that form; None where the file is as good, or is not a model."""
    has_amx = "AMX int8" in instruction_sets()
    try:
        if not has_amx and not _is_marked(path):
            return None
        model = onnx.load(path)
        other = take_placement(model)
    except (OSError, ValueError, DecodeError):
        return None
    model = model if other is None else other
    changed = use_float_form(model) or other is not None
    if has_amx:
        shift_weights(model)
    return model.SerializeToString() if changed or has_amx else None


def _is_marked(path: Path) -> bool:
    """Tell whether a file may be one that has another form, without reading it as a model."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(mark.encode()) >= 0 for mark in (CLIPPING, NODES))
