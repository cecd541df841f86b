"""Reading checkpoints without running anything they contain, and loading them strictly."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import DataError

_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, on the CPU.

    `.pth`/`.pt` files may hold the state dict itself or wrap it (`{"state_dict": ...}`, `{"model": ...}`), and its
    names may carry the prefix that DataParallel (`module.`) or `torch.compile` (`_orig_mod.`) adds.

    Raises:
        DataError: the file is missing, of another kind, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such checkpoint; give the file with --weights FILE or frontend.checkpoint")
    if path.suffix not in _SUFFIXES:
        raise DataError(f"{path}: unknown kind of checkpoint; wanted one of {', '.join(_SUFFIXES)}")
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return _strip_prefixes(_unwrap(path, loaded))


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


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], path: Path, model: str) -> None:
    """Copy `state` into `network`; every name and shape must fit.

    Raises:
        DataError: what does not fit is listed; or a tensor holds NaN or Inf.
    """
    wanted = network.state_dict()
    # PyTorch before 0.4.1 did not save this counter; it takes no part in inference.
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    faults = []
    missing = sorted(set(wanted) - set(state) - optional)
    unexpected = sorted(set(state) - set(wanted))
    wrong = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    if missing:
        faults.append(f"{len(missing)} keys missing (first: {missing[0]})")
    if unexpected:
        faults.append(f"{len(unexpected)} unexpected (first: {unexpected[0]})")
    if wrong:
        name = wrong[0]
        faults.append(
            f"{len(wrong)} of another shape (first: {name} is {list(state[name].shape)}, "
            f"wanted {list(wanted[name].shape)})"
        )
    if faults:
        raise DataError(f"{path}: not a checkpoint of {model}: {', '.join(faults)}; check frontend.model")
    bad = next(
        (name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()), None
    )
    if bad:
        raise DataError(f"{path}: tensor {bad} holds NaN or Inf; this checkpoint cannot be used")
    network.load_state_dict({name: state.get(name, value) for name, value in wanted.items()}, strict=True)
