"""Reading checkpoints without running anything they contain, and loading them strictly."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import DataError
from pipeline.models import libraries, zoo
from pipeline.terminal import console
from pipeline.weights import state_dicts
from pipeline.weights.file_kinds import FileKind, kind_of, why_not_weights
from pipeline.weights.pdparams import MoreThanArraysError, read_pdparams
from pipeline.weights.tensor_reader import HostileError, read_tensors

_PADDLE = ".pdparams"
_PADDLE_NAMES = ("._mean", "._variance")  # of a batch norm, which PyTorch calls running_mean and running_var
_COUNTER = "num_batches_tracked"
_GIVE = "give the file by frontend.checkpoint (--weights of build and init, --pretrained_weights of export)"
_AGAIN = "copy or download it again"


def read_state_dict(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, on the CPU; print on standard error what was skipped.

    The content decides what the file is, not its suffix: PyTorch's formats, safetensors, PaddlePaddle's `.pdparams`. It
    may hold the state dict directly or wrapped (`{"state_dict": ...}`, `{"model": ...}`) beside anything else, and its
    names may carry the prefix that DataParallel (`module.`), `torch.compile` (`_orig_mod.`) or Lightning (`model.`)
    adds. Names and layout stay as in the file: `load_strictly` converts those of PaddlePaddle.

    Args:
        path: the file.
        key: which state dict to take where there are several, as `model_ema` (frontend.checkpoint_key).

    Raises:
        DataError: the file is missing, of another kind or damaged, or holds no tensors by name.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the file of the weights in it")
    if not path.is_file():
        raise DataError(f"{path}: no such checkpoint; {_GIVE}")
    try:
        kind = kind_of(path)
        if not kind.is_weights:
            raise DataError(f"{path}: {why_not_weights(path, kind)}")
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror})") from None
    read = {FileKind.SAFETENSORS: _read_safetensors, FileKind.PICKLE: _read_pickle}.get(kind, _read_torch)
    loaded, passed_over = read(path, kind)
    chosen = state_dicts.choose(path, loaded, key)
    if passed_over:
        names = state_dicts.shorten(passed_over)
        console.warning(f"note: {path}: objects other than tensors were skipped: {names}")
    for note in chosen.notes:
        console.warning(f"note: {note}")
    for detail in chosen.details:
        console.detail(detail)
    return chosen.tensors


_Read = tuple[object, tuple[str, ...]]  # the content, and the types of objects that were skipped


def _read_safetensors(path: Path, _: FileKind) -> _Read:
    try:
        return safetensors.torch.load_file(path), ()
    except safetensors.SafetensorError as err:
        raise DataError(f"{path}: not a whole safetensors file ({err}); {_AGAIN}") from None


def _read_torch(path: Path, kind: FileKind) -> _Read:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with path.open("rb") as stream:  # given a path, torch.load goes by the suffix .safetensors
                return torch.load(stream, map_location="cpu", weights_only=True), ()
    except pickle.UnpicklingError:  # its own text tells the user to load the file with weights_only=False
        return _read_restricted(path, kind)
    except Exception as err:  # a damaged pickle raises any of a dozen types
        raise DataError(f"{path}: not a whole checkpoint ({_reason(err)}); {_AGAIN}") from None


def _read_pickle(path: Path, kind: FileKind) -> _Read:
    try:
        return _tensors(path, read_pdparams(path), ""), ()
    except MoreThanArraysError:
        if path.suffix == _PADDLE:
            raise
        return _read_restricted(path, kind)


def _read_restricted(path: Path, kind: FileKind) -> _Read:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_tensors(path, kind)
    except HostileError as err:
        raise DataError(
            f"{path}: names {err}, which runs programs or code and is in no checkpoint; do not use this file, or save "
            "it again with torch.save(model.state_dict(), FILE) where you trust its origin"
        ) from None
    except Exception as err:  # as above
        raise DataError(f"{path}: not a whole checkpoint ({_reason(err)}); {_AGAIN}") from None


def _reason(err: Exception) -> str:
    """Return the first line of a library's error, without the libraries' own advice."""
    reason = str(err).partition("\n")[0].partition("weights_only")[0] or type(err).__name__
    if "central directory" in reason or "zip file" in reason:
        return "its zip directory is missing"
    # Words of torch's zip reader ("internal miniz error") and of Python's streams ("negative seek value -3649").
    damaged = ("PytorchStreamReader", "miniz", "negative seek", "Invalid argument")
    return "it is cut off or damaged" if any(word in reason for word in damaged) else reason


def _tensors(path: Path, value: object, name: str) -> object:
    """Return `value` with tensors in place of its arrays, in nested dictionaries too."""
    if isinstance(value, dict):
        return {key: _tensors(path, item, f"{key}") for key, item in value.items()}
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == np.uint16:
        raise DataError(f"{path}: tensor {name} is uint16, as Paddle saves bfloat16; save it again as float32")
    # A copy: PyTorch wants memory that may be written, in the machine's byte order.
    return torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))


_NEAR = 0.2  # share of a checkpoint's tensors: a network with fewer differences is suggested


@dataclass(frozen=True)
class _Entry:
    """The place of a network's tensor in a checkpoint."""

    name: str
    shape: tuple[int, ...]
    transposed: bool = False


@dataclass(frozen=True)
class _Misfit:
    """Why a checkpoint does not fit a network, by the names in the file."""

    missing: list[str]
    unexpected: list[str]
    wrong: list[_Entry]  # of another shape, as they are wanted
    classes: tuple[int, int] | None  # found and wanted, where only the number of the classifier's rows differs


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], path: Path, model: str) -> None:
    """Copy `state` into `network`; every name and shape must fit.

    A state dict with PaddlePaddle's `_mean` and `_variance` in its batch norms has the weights of its linear layers as
    [in, out].

    Raises:
        DataError: what does not fit is listed; or a tensor holds NaN or Inf.
    """
    libraries.drop_auxiliary(network, state)
    entries = _entries(network, state)
    misfit = _compare(network, state, entries)
    if misfit:
        raise DataError(f"{path}: {_describe(misfit, state, path, model)}")
    bad = next(
        (name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()), None
    )
    if bad:
        raise DataError(f"{path}: tensor {bad} holds NaN or Inf; this checkpoint cannot be used")
    loaded = network.state_dict()
    for name, entry in entries.items():
        if entry.name in state:
            loaded[name] = state[entry.name].T if entry.transposed else state[entry.name]
    network.load_state_dict(loaded, strict=True)


def classes_of(network: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Return how many classes a checkpoint of this network has; None if it is of another network.

    Names and shapes decide, whatever their order; the network may be on the meta device, with any number of classes.
    """
    libraries.drop_auxiliary(network, state)
    misfit = _compare(network, state, _entries(network, state))
    if misfit is not None:
        return misfit.classes[0] if misfit.classes else None
    return _outputs_of(network)


def _outputs_of(network: nn.Module) -> int | None:
    """Return how many classes a network has: as it says itself, or of its last linear layer or convolution."""
    own = getattr(network, "num_classes", None)
    if isinstance(own, int):
        return own
    linear = [layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear)]
    convolutions = [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    found = linear or convolutions
    return found[-1] if found else None


def _entries(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, _Entry]:
    """Return the place of each tensor of the network in the file."""
    tensors = network.state_dict()
    if not any(name.endswith(_PADDLE_NAMES) for name in state):
        return {name: _Entry(name, tuple(tensor.shape)) for name, tensor in tensors.items()}
    linear = {f"{name}.weight" for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    renamed = {name: re.sub(r"\.running_(mean|var)$", _paddle_name, name) for name in tensors}
    return {
        name: _Entry(renamed[name], tuple(tensor.T.shape if name in linear else tensor.shape), name in linear)
        for name, tensor in tensors.items()
    }


def _paddle_name(found: re.Match[str]) -> str:
    return {"mean": "._mean", "var": "._variance"}[found[1]]


def _compare(network: nn.Module, state: Mapping[str, Tensor], entries: Mapping[str, _Entry]) -> _Misfit | None:
    """Return what does not fit; None where everything fits."""
    wanted = {entry.name: entry for entry in entries.values()}
    # PyTorch before 0.4.1 did not save this counter, Paddle has none; it takes no part in inference.
    missing = sorted(name for name in set(wanted) - set(state) if not name.endswith(_COUNTER))
    unexpected = sorted(name for name in set(state) - set(wanted) if not name.endswith(_COUNTER))
    wrong = [entry for name, entry in wanted.items() if name in state and tuple(state[name].shape) != entry.shape]
    if not missing and not unexpected and not wrong:
        return None
    classes = None if missing or unexpected else _classes(network, state, wrong)
    return _Misfit(missing, unexpected, wrong, classes)


def _classes(network: nn.Module, state: Mapping[str, Tensor], wrong: list[_Entry]) -> tuple[int, int] | None:
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
    return pair if pair[1] == _outputs_of(network) else None


def _describe(misfit: _Misfit, state: Mapping[str, Tensor], path: Path, model: str) -> str:
    if misfit.classes:
        found, wanted = misfit.classes
        return (
            f"has {found} classes, wanted {wanted}; give images of its {found} classes (without images: "
            f"frontend.num_classes={found}, or --num_classes {found} of export), or a checkpoint of {wanted}"
        )
    known = _known_networks(state)
    advice = f"it fits {', '.join(known)}" if known else "check frontend.model"
    return f"not a checkpoint of {model}: {_faults(misfit, state)}; {advice}"


def _faults(misfit: _Misfit, state: Mapping[str, Tensor]) -> str:
    faults = []
    if misfit.missing:
        faults.append(f"{len(misfit.missing)} keys missing (first: {misfit.missing[0]})")
    if misfit.unexpected:
        faults.append(f"{len(misfit.unexpected)} unexpected (first: {misfit.unexpected[0]})")
    if misfit.wrong:
        entry = misfit.wrong[0]
        faults.append(
            f"{len(misfit.wrong)} of another shape (first: {entry.name} is {list(state[entry.name].shape)}, "
            f"wanted {list(entry.shape)})"
        )
    return ", ".join(faults)


def describe_nearest(state: Mapping[str, Tensor]) -> str | None:
    """Return the network of the table that a state dict fits best and the differences; None where none is close."""
    found: tuple[int, str] | None = None
    for row in {(row.design, row.depths, row.bottleneck): row for row in reversed(zoo.MODELS)}.values():
        with torch.device("meta"):
            network = zoo.build_network(row)
        misfit = _compare(network, state, _entries(network, state))
        if misfit is None:
            continue
        linear = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)][-1]
        wrong = [entry for entry in misfit.wrong if not entry.name.startswith(f"{linear}.")]  # of other classes
        misfit = replace(misfit, wrong=wrong)
        count = len(misfit.missing) + len(misfit.unexpected) + len(misfit.wrong)
        if count <= len(state) * _NEAR and (found is None or count < found[0]):
            found = count, f"{row.library}/{row.name} comes nearest, but for {_faults(misfit, state)}"
    return found[1] if found else None


def _known_networks(state: Mapping[str, Tensor]) -> list[str]:
    """Return the networks of the table that the checkpoint fits, with any number of classes."""
    return [f"{row.library} {row.name}" for row in networks_of(state)[0]]


def networks_of(state: Mapping[str, Tensor]) -> tuple[list[zoo.Model], int]:
    """Return the rows of the table that a state dict fits, in their order, and how many classes it has (or 0).

    Args:
        state: as `read_state_dict` gives it.
    """
    classes: dict[object, int | None] = {}
    found = []
    for row in zoo.MODELS:
        made = (row.design, row.depths, row.bottleneck)
        # Rows of equal networks, such as torchvision's and timm's, are tried once.
        if made not in classes:
            with torch.device("meta"):  # shapes without memory
                network = zoo.build_network(row)
            classes[made] = classes_of(network, state)
        if classes[made] is not None:
            found.append(row)
    return found, next((count for count in classes.values() if count is not None), 0)
