"""Which network a checkpoint fits, and loading it into one strictly."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.errors import DataError
from pipeline.models import libraries, zoo
from pipeline.models.torch_threads import one_thread
from pipeline.terminal import console
from pipeline.weights.misfits import Entry, Misfit, advise, describe_faults, rename_classifier

_PADDLE_NAMES = ("._mean", "._variance")  # of a batch norm, which PyTorch calls running_mean and running_var
COUNTER = "num_batches_tracked"
_NEAR = 0.2  # share of a checkpoint's tensors: a network with fewer differences is suggested


@dataclass(frozen=True)
class _Outline:
    """What of a network decides whether a checkpoint fits it."""

    shapes: Mapping[str, tuple[int, ...]]  # of its tensors by name
    linear: tuple[str, ...]  # its linear layers, in order
    outputs: int | None  # classes


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], path: Path, model: str) -> None:
    """Give the tensors of `state` to `network`, which shares their memory; every name and shape must fit.

    The network may be on the meta device, and is then on the CPU.

    A state dict with PaddlePaddle's `_mean` and `_variance` in its batch norms has the weights of its linear layers as
    [in, out].

    Raises:
        DataError: what does not fit is listed; or a tensor holds NaN or Inf, or no real numbers.
    """
    state = {name: _dense(path, name, tensor) for name, tensor in state.items()}
    libraries.drop_auxiliary(network, state)
    outline = _outline(network)
    state, own_name = _with_classifier(outline, state)
    entries = _entries(outline, state)
    misfit = _compare(outline, state, entries)
    if misfit:
        raise DataError(f"{path}: {_describe(misfit, state, path, model)}")
    if own_name is not None:
        console.warning(f"note: {path}: {_describe_renaming(outline, own_name, model)}")
    with one_thread():
        bad = next(
            (name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()), None
        )
    if bad:
        raise DataError(f"{path}: tensor {bad} holds NaN or Inf; this checkpoint cannot be used")
    loaded = network.state_dict()
    for name, entry in entries.items():
        if entry.name in state:
            _check_float(path, entry.name, state[entry.name], loaded[name])
            value = state[entry.name].T.contiguous() if entry.transposed else state[entry.name]
            loaded[name] = value.to(loaded[name].dtype)
        elif loaded[name].is_meta:
            loaded[name] = torch.zeros_like(loaded[name], device="cpu")
    network.load_state_dict(loaded, strict=True, assign=True)


def _dense(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Return a tensor as plain numbers: sparse and quantized ones hold the same, and float8 becomes float32.

    Raises:
        DataError: it has no values.
    """
    if tensor.is_meta:
        raise DataError(f"{path}: tensor {name} has a shape and no values (a meta tensor); save the weights themselves")
    if tensor.is_quantized:
        return tensor.dequantize()
    if tensor.layout is not torch.strided:
        return tensor.to_dense()
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor


def _check_float(path: Path, name: str, tensor: Tensor, wanted: Tensor) -> None:
    if wanted.is_floating_point() and not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise DataError(
            f"{path}: tensor {name} is {kind}, not float: packed or quantized weights; give the checkpoint of the "
            "float network"
        )


def classes_of(network: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Return how many classes a checkpoint of this network has; None if it is of another network.

    Names and shapes decide, whatever their order; the network may be on the meta device, with any number of classes.
    """
    libraries.drop_auxiliary(network, state)
    return _classes_of(_outline(network), state)


def _with_classifier(outline: _Outline, state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], str | None]:
    if not outline.linear or has_paddle_names(state):
        return state, None
    return rename_classifier(state, outline.shapes, outline.linear[-1])


def describe_renamed(row: zoo.Model, state: Mapping[str, Tensor], network: nn.Module | None = None) -> str:
    """Return what a classifier of another name than that of a network is taken for, after "; ", or "".

    Args:
        network: of the row, where that is none of the table; it may be on the meta device.
    """
    outline = _outline_of_row(row) if network is None else _outline(network)
    _, own_name = _with_classifier(outline, state)
    return "" if own_name is None else f"; {_describe_renaming(outline, own_name, f'{row.library} {row.name}')}"


def _describe_renaming(outline: _Outline, own_name: str, model: str) -> str:
    return (
        f"{own_name!r} is taken for {outline.linear[-1]!r} of {model}; layers without weights beside it (dropout, "
        "softmax) are in no checkpoint and left out"
    )


def _classes_of(outline: _Outline, state: Mapping[str, Tensor]) -> int | None:
    state, _ = _with_classifier(outline, state)
    misfit = _compare(outline, state, _entries(outline, state))
    if misfit is not None:
        return misfit.classes[0] if misfit.classes else None
    return outline.outputs


def _outline(network: nn.Module) -> _Outline:
    return _Outline(
        shapes={name: tuple(tensor.shape) for name, tensor in network.state_dict().items()},
        linear=tuple(name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)),
        outputs=_outputs_of(network),
    )


@functools.cache
def _outline_of_row(row: zoo.Model) -> _Outline:
    """Return the outline of a network of the table, which takes 10 to 100 ms to make."""
    with torch.device("meta"):  # shapes without memory
        return _outline(zoo.build_network(row))


def _outputs_of(network: nn.Module) -> int | None:
    """Return how many classes a network has: as it says itself, or of its last linear layer or convolution."""
    own = getattr(network, "num_classes", None)
    if isinstance(own, int):
        return own
    linear = [layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear)]
    convolutions = [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    found = linear or convolutions
    return found[-1] if found else None


def _entries(outline: _Outline, state: Mapping[str, Tensor]) -> dict[str, Entry]:
    """Return the place of each tensor of the network in the file."""
    if not has_paddle_names(state):
        return {name: Entry(name, shape) for name, shape in outline.shapes.items()}
    linear = {f"{name}.weight" for name in outline.linear}
    renamed = {name: re.sub(r"\.running_(mean|var)$", _paddle_name, name) for name in outline.shapes}
    return {
        name: Entry(renamed[name], shape[::-1] if name in linear else shape, name in linear)
        for name, shape in outline.shapes.items()
    }


def has_paddle_names(state: Iterable[str]) -> bool:
    return any(name.endswith(_PADDLE_NAMES) for name in state)


def _paddle_name(found: re.Match[str]) -> str:
    return {"mean": "._mean", "var": "._variance"}[found[1]]


def _compare(outline: _Outline, state: Mapping[str, Tensor], entries: Mapping[str, Entry]) -> Misfit | None:
    """Return what does not fit; None where everything fits."""
    wanted = {entry.name: entry for entry in entries.values()}
    # PyTorch before 0.4.1 did not save this counter, Paddle has none; it takes no part in inference.
    missing = sorted(name for name in set(wanted) - set(state) if not name.endswith(COUNTER))
    unexpected = sorted(name for name in set(state) - set(wanted) if not name.endswith(COUNTER))
    wrong = [entry for name, entry in wanted.items() if name in state and tuple(state[name].shape) != entry.shape]
    if not missing and not unexpected and not wrong:
        return None
    classes = None if missing or unexpected else _classes(outline, state, wrong)
    return Misfit(missing, unexpected, wrong, classes)


def _classes(outline: _Outline, state: Mapping[str, Tensor], wrong: list[Entry]) -> tuple[int, int] | None:
    """Return the classes found and wanted, if the rows of the classifier's tensors are all that differs.

    A classifier may be a linear layer or a convolution, and there may be two, as of distilled networks.
    """
    pairs = set()
    for entry in wrong:
        found, wanted = tuple(state[entry.name].shape), entry.shape
        if entry.transposed:
            found, wanted = found[::-1], wanted[::-1]
        if found[1:] != wanted[1:] or not found:
            return None
        pairs.add((found[0], wanted[0]))
    if len(pairs) != 1:
        return None
    (pair,) = pairs
    return pair if pair[1] == outline.outputs else None


def _describe(misfit: Misfit, state: Mapping[str, Tensor], path: Path, model: str) -> str:
    if misfit.classes:
        found, wanted = misfit.classes
        return (
            f"has {found} classes, wanted {wanted}; give images of its {found} classes (without images: "
            f"frontend.num_classes={found}, or --num_classes {found} of export), or a checkpoint of {wanted}"
        )
    known = _known_networks(state)
    advice = f"it fits {', '.join(known)}" if known else "check frontend.model"
    return f"not a checkpoint of {model}: {describe_faults(misfit, state)}; {advice}"


def describe_nearest(state: Mapping[str, Tensor]) -> str | None:
    """Return the nearest network of the table, the differences and what to do; None where none is near."""
    found: tuple[int, zoo.Model, Misfit, str] | None = None
    for row in _different_networks().values():
        outline = _outline_of_row(row)
        misfit = _compare(outline, state, _entries(outline, state))
        if misfit is None:
            continue
        classifier = outline.linear[-1]
        wrong = [entry for entry in misfit.wrong if not entry.name.startswith(f"{classifier}.")]  # of other classes
        misfit = replace(misfit, wrong=wrong if wrong or misfit.missing or misfit.unexpected else misfit.wrong)
        count = len(misfit.missing) + len(misfit.unexpected) + len(misfit.wrong)
        if count <= len(state) * _NEAR and (found is None or count < found[0]):
            found = count, row, misfit, classifier
    if found is None:
        return None
    _, row, misfit, classifier = found
    faults = describe_faults(misfit, state)
    return f"{row.library}/{row.name} comes nearest, but for {faults}; {advise(misfit, classifier)}"


def _known_networks(state: Mapping[str, Tensor]) -> list[str]:
    """Return the networks of the table that the checkpoint fits, with any number of classes."""
    return [f"{row.library} {row.name}" for row in networks_of(state)[0]]


def networks_of(state: Mapping[str, Tensor]) -> tuple[list[zoo.Model], int]:
    """Return the rows of the table that a state dict fits, in their order, and how many classes it has (or 0).

    Args:
        state: as `checkpoints.read_state_dict` gives it.
    """
    rows = _different_networks()
    classes = {made: _classes_of(_outline_of_row(row), state) for made, row in rows.items()}
    found = [row for row in zoo.MODELS if classes[_made(row)] is not None]
    return found, next((count for count in classes.values() if count is not None), 0)


def _made(row: zoo.Model) -> tuple[object, ...]:
    return row.design, row.depths, row.bottleneck


def _different_networks() -> dict[tuple[object, ...], zoo.Model]:
    """Return the first row of each network: torchvision's and timm's, for example, are equal."""
    return {_made(row): row for row in reversed(zoo.MODELS)}
