"""Which network of the libraries a checkpoint that fits none comes near, and what of it is otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from pipeline.models import libraries
from pipeline.weights import library_index

_CHANNELS = 3  # of the images that networks here read
_SHOWN = 2  # networks in a message


def describe(state: Mapping[str, Tensor]) -> str | None:
    """Return what the checkpoint is and what to do, to complete a message that begins with its path; None: not known.

    Only the index that comes with this program is asked, by names and shapes.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for library in libraries.LIBRARIES:
        if library_index.candidates(library, shapes):
            return None
    for library in libraries.LIBRARIES:
        if bare := library_index.networks_without(library, shapes, ()):
            return f"is {_named(library, bare)} without a classifier; give the checkpoint of the whole network"
        for channels, changed in _of_three_channels(shapes):
            if found := library_index.candidates(library, changed):
                return (
                    f"is {_named(library, found)} for images of {channels} channel{'s' if channels > 1 else ''}, which "
                    f"is not built here; {_advice(channels)}"
                )
        for head, names in _heads(shapes):
            if found := library_index.networks_without(library, shapes, names):
                return (
                    f"is {_named(library, found)} with a classifier of its own ({head!r}, {len(names)} tensors); "
                    "export the network to ONNX and give that file"
                )
    return None


def _advice(channels: int) -> str:
    if channels == 1:
        return "export it to ONNX and give that file, which is taken"
    return "networks of 1 or 3 channels are taken"


def _named(library: str, names: Sequence[str]) -> str:
    return " or ".join(f"{library}/{name}" for name in names[:_SHOWN]) + (" or the like" if names[_SHOWN:] else "")


def _of_three_channels(shapes: library_index.Shapes) -> Iterator[tuple[int, dict[str, Sequence[int]]]]:
    """Yield the channels that a convolution reads, and the shapes as they were if it read three."""
    for name, shape in shapes.items():
        if len(shape) == 4 and shape[1] != _CHANNELS and shape[2] > 1:
            yield shape[1], {**shapes, name: (shape[0], _CHANNELS, *shape[2:])}
            return  # the first that is no product: what reads the image


def _heads(shapes: library_index.Shapes) -> Iterator[tuple[str, set[str]]]:
    """Yield what may be a classifier of several layers: a name before dots, and all tensors below it."""
    last = [name for name, shape in shapes.items() if len(shape) == 2][-1:]
    for name in last:
        parts = name.split(".")
        for end in range(len(parts) - 1, 0, -1):
            head = ".".join(parts[:end])
            yield head, {each for each in shapes if each.startswith(f"{head}.")}
