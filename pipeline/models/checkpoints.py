"""Reading checkpoints without running anything they contain, and loading them strictly."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import DataError
from pipeline.models import zoo
from pipeline.models.pdparams import read_pdparams

_PADDLE = ".pdparams"
_WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, on the CPU.

    `.pth`/`.pt` files may hold the state dict itself or wrap it (`{"state_dict": ...}`, `{"model": ...}`), and its
    names may carry the prefix that DataParallel (`module.`) or `torch.compile` (`_orig_mod.`) adds. Names and layout
    are the file's own: what PaddlePaddle's `.pdparams` have otherwise is undone by `load_strictly`.

    Raises:
        DataError: the file is missing, of another kind, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such checkpoint; give the file with --weights FILE or frontend.checkpoint")
    if path.suffix == ".onnx":
        raise DataError(f"{path}: is a whole model; build it with frontend.type onnx, or give weights alone")
    if path.suffix not in zoo.WEIGHTS_SUFFIXES:
        raise DataError(f"{path}: unknown kind of checkpoint; wanted one of {', '.join(zoo.WEIGHTS_SUFFIXES)}")
    read = {".safetensors": _read_safetensors, _PADDLE: _read_paddle}.get(path.suffix, _read_torch)
    return _strip_prefixes(_unwrap(path, read(path)))


def _read_safetensors(path: Path) -> object:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as err:
        raise DataError(f"{path}: not a whole safetensors file ({err}); copy or download it again") from None


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        # Not PyTorch's own text: it tells the user to load the file with weights_only=False.
        found = re.search(r"GLOBAL (\S+)", str(err))
        reason = f"it calls {found[1]}" if found else "its pickle is not one of tensors"
        raise DataError(
            f"{path}: holds more than tensors, or is not a checkpoint ({reason}); save it again with "
            "torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as err:  # a damaged pickle surfaces as any of a dozen kinds
        reason = str(err).partition("\n")[0] or type(err).__name__
        raise DataError(f"{path}: not a whole checkpoint ({reason}); copy or download it again") from None


def _read_paddle(path: Path) -> object:
    return _tensors(path, read_pdparams(path), "")


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


def _unwrap(path: Path, loaded: object) -> dict[str, Tensor]:
    for _ in range(3):  # {"model": {"state_dict": ...}} is the deepest nesting met
        if not isinstance(loaded, Mapping):
            break
        tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
        inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            if tensors and len(tensors) == len(loaded):
                return {str(name): value for name, value in tensors.items()}
            break
        loaded = inner
    found = sorted(str(key) for key in loaded)[:5] if isinstance(loaded, Mapping) else type(loaded).__name__
    raise DataError(f"{path}: no state dict in it (found {found}); wanted tensors by name, or wrapped in 'state_dict'")


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in _PREFIXES if state and all(name.startswith(p) for name in state)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


@dataclass(frozen=True)
class _Entry:
    """Where a tensor of a network stands in a checkpoint."""

    name: str
    shape: tuple[int, ...]
    transposed: bool = False


@dataclass(frozen=True)
class _Misfit:
    """What keeps a checkpoint from being one of a network, by the names of the file."""

    missing: list[str]
    unexpected: list[str]
    wrong: list[_Entry]  # of another shape, as they are wanted
    classes: tuple[int, int] | None  # found and wanted, where nothing but the classifier's rows differs


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], path: Path, model: str) -> None:
    """Copy `state` into `network`; every name and shape must fit.

    The names and layout of a `.pdparams` file are PaddlePaddle's: `_mean` and `_variance` in a batch norm, and the
    weight of a linear layer as [in, out].

    Raises:
        DataError: what does not fit is listed; or a tensor holds NaN or Inf.
    """
    entries = _entries(network, path)
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


def fits(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> bool:
    """Tell whether `load_strictly` would find every name and shape."""
    return _compare(network, state, _entries(network, path)) is None


def _entries(network: nn.Module, path: Path) -> dict[str, _Entry]:
    """Return where each tensor of the network stands in the file."""
    tensors = network.state_dict()
    if path.suffix != _PADDLE:
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
    """Return what does not fit; None where everything does."""
    wanted = {entry.name: entry for entry in entries.values()}
    # PyTorch before 0.4.1 did not save this counter, Paddle has none; it takes no part in inference.
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = sorted(set(wanted) - set(state) - optional)
    unexpected = sorted(set(state) - set(wanted))
    wrong = [entry for name, entry in wanted.items() if name in state and tuple(state[name].shape) != entry.shape]
    if not missing and not unexpected and not wrong:
        return None
    classes = None if missing or unexpected else _classes(network, state, entries, wrong)
    return _Misfit(missing, unexpected, wrong, classes)


def _classes(
    network: nn.Module, state: Mapping[str, Tensor], entries: Mapping[str, _Entry], wrong: list[_Entry]
) -> tuple[int, int] | None:
    """Return the classes found and wanted, if the classifier (the last linear layer) is all that differs."""
    linear = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        return None
    name, layer = linear[-1]
    weight = entries[f"{name}.weight"]
    classifier = [weight.name, *([entries[f"{name}.bias"].name] if layer.bias is not None else [])]
    found = tuple(state[weight.name].T.shape if weight.transposed else state[weight.name].shape)
    if sorted(entry.name for entry in wrong) != sorted(classifier) or len(found) != 2 or found[1] != layer.in_features:
        return None
    return found[0], layer.out_features


def _describe(misfit: _Misfit, state: Mapping[str, Tensor], path: Path, model: str) -> str:
    if misfit.classes:
        found, wanted = misfit.classes
        return (
            f"has {found} classes, wanted {wanted}; give images of its {found} classes (without images: "
            f"frontend.num_classes={found}, to export: --num_classes {found}), or a checkpoint of {wanted}"
        )
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
    known = _known_networks(state, path)
    advice = f"it fits {', '.join(known)}" if known else "check frontend.model"
    return f"not a checkpoint of {model}: {', '.join(faults)}; {advice}"


def _known_networks(state: Mapping[str, Tensor], path: Path) -> list[str]:
    """Return the networks of the table that the checkpoint fits, with any number of classes."""
    fitting = []
    for row in zoo.MODELS:
        with torch.device("meta"):  # shapes without memory
            network = zoo.build_network(row)
        misfit = _compare(network, state, _entries(network, path))
        if misfit is None or misfit.classes:
            fitting.append(f"{row.library} {row.name}")
    return fitting
