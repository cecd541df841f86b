"""Which arithmetic the activations of a float32 model are read in, and opening a reader of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pipeline.errors import BackendError
from pipeline.host import hardware
from pipeline.host.hardware import release_memory
from pipeline.runtimes.activations import ActivationReader, Arithmetic, Float32, Halves, Image, Reader
from pipeline.runtimes.base import Placement
from pipeline.runtimes.bfloat16 import Bfloat16Reader
from pipeline.runtimes.sessions import FILE_ERRORS, RUNTIME_ERRORS
from pipeline.runtimes.unordered import UnorderedReader

_LEAST_IMAGES = 32  # that are worth opening a model for bfloat16 too
# Of the norm of a tensor, what bfloat16 may change of it. Those of resnet18 change by .004 to .03, its logits by .04.
_LARGEST_SHARE = 0.1


def computes_bfloat16() -> bool:
    """Tell whether this machine computes in bfloat16: its CPU does, and OpenVINO is installed."""
    return hardware.computes_bfloat16() and find_spec("openvino") is not None


def preferred(allowed: bool, images: int, found: Arithmetic | None = None) -> Arithmetic | None:
    """Return what a number of images is to be read in; None: what `open_reader` finds.

    Args:
        allowed: whether bfloat16 is.
        found: what was found of the same network before.
    """
    return found if allowed and images >= _LEAST_IMAGES else Arithmetic.FLOAT32


def open_reader(
    model: Path, names: Sequence[str], placement: Placement, image: Image, arithmetic: Arithmetic | None
) -> Reader:
    """Return a reader of a float32 model that is open for as many threads as the placement has streams.

    Args:
        image: a prepared image.
        arithmetic: what to compute in; None: bfloat16, where the tensors of the image are those of float32 but for
            rounding, else float32.
    """
    wanted = list(dict.fromkeys(names))
    threads = placement.threads // placement.streams
    expected: dict[str, Float32] = {}
    if arithmetic is None:  # one model at a time: both would take the memory of both
        exact = ActivationReader(model, wanted, threads=threads)
        expected = {name: tensor.copy() for name, tensor in exact.read(image).items()}
        exact.close()
        release_memory()
    reader = None if arithmetic is Arithmetic.FLOAT32 else _open_bfloat16(model, wanted, placement)
    if reader is not None:
        found = reader.read(image) if expected else {}
        moved = [name for name in found if name not in reader.unmoved]
        near = (_is_near(as_float32(found[name], moved=name in moved), expected[name]) for name in wanted if expected)
        if all(near):
            return reader
        reader.close()
    return ActivationReader(model, wanted, threads=threads)


def open_unordered(
    model: Path, names: Sequence[str], placement: Placement, image: Image, *, ordered: Collection[str], scratch: Path
) -> Reader:
    """Return a reader of a float32 model in float32, whose tensors may come with their values in any order.

    Args:
        image: a prepared image.
        ordered: tensors that come in the model's order.
        scratch: a file that is written and removed.
    """
    wanted = list(dict.fromkeys(names))
    threads = placement.threads // placement.streams
    try:
        return UnorderedReader(model, wanted, image, ordered=ordered, threads=threads, scratch=scratch)
    except (*RUNTIME_ERRORS, *FILE_ERRORS):  # as where the file would be larger than 2 GiB
        return ActivationReader(model, wanted, threads=threads)


def _open_bfloat16(model: Path, names: Sequence[str], placement: Placement) -> Bfloat16Reader | None:
    try:
        return Bfloat16Reader(model, names, placement)
    except BackendError:
        return None


def as_float32(values: Float32 | Halves, *, moved: bool = True) -> Float32:
    """Return values as float32, with the axis of channels where float32 models have it: [1, C, H, W].

    Args:
        moved: whether it is the last of what bfloat16 has with four axes.
    """
    if values.dtype == np.float32:
        return values.view(np.float32)
    widened = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.moveaxis(widened, -1, 1) if moved and widened.ndim == 4 else widened


def _is_near(found: Float32, expected: Float32) -> bool:
    if found.shape != expected.shape:
        return False
    return bool(np.linalg.norm(found - expected) <= _LARGEST_SHARE * np.linalg.norm(expected))
