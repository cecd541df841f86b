"""Reading checkpoints without running anything they contain. `matching` loads them into networks."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pipeline.errors import DataError, describe_absent, first_line, in_a_line
from pipeline.models.record_values import Numbers
from pipeline.terminal import console
from pipeline.weights import state_dicts
from pipeline.weights.class_names import find_class_names
from pipeline.weights.file_kinds import FileKind, kind_of, why_not_weights
from pipeline.weights.pdparams import MoreThanArraysError, read_pdparams
from pipeline.weights.tensor_reader import HostileError, WrappedTensorError, read_tensors

_PADDLE = ".pdparams"
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.")  # of a checkpoint in parts
_PICKLED = "data.pkl"  # in the zip of a checkpoint
_UNPACKED = "a checkpoint that was unpacked; give the file that it was before, or pack its folder by zip -0 -r"
_SHARDS = ".distcp"  # suffix of the files of a distributed checkpoint; what they hold is in `.metadata` beside them
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", _PADDLE)
_GIVE = "give the file by frontend.checkpoint (--weights of build and init, --pretrained_weights of export)"
_AGAIN = "copy or download it again"


def read_state_dict(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name: those of `read`, with its arguments."""
    return read(path, key).tensors


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds."""

    tensors: dict[str, Tensor]  # by name, on the CPU
    class_names: tuple[str, ...] | None  # in the order of its outputs; None: it holds none
    normalization: tuple[Numbers, Numbers] | None  # mean and std of a layer before the network, of a 0..1 image


def read(path: Path, key: str | None = None) -> Content:
    """Return the tensors of a checkpoint and what it says of the network.

    What was skipped is printed on standard error.

    The content decides what the file is, not its suffix: PyTorch's formats, safetensors, PaddlePaddle's `.pdparams`. It
    may hold the state dict directly or wrapped (`{"state_dict": ...}`, `{"model": ...}`) beside anything else, and its
    names may carry the prefix that DataParallel (`module.`), `torch.compile` (`_orig_mod.`) or Lightning (`model.`)
    adds. Names and layout stay as in the file: `matching.load_strictly` converts those of PaddlePaddle.

    Args:
        path: the file.
        key: which state dict to take where there are several, as `model_ema` (frontend.checkpoint_key).

    Raises:
        DataError: the file is missing, of another kind or damaged, or holds no tensors by name.
    """
    if path.is_dir():
        raise DataError(f"{path}: {_why_not_folder(path)}")
    if not path.is_file():
        raise DataError(f"{path}: {describe_absent(path, 'no such checkpoint')}; {_GIVE}")
    try:
        kind = kind_of(path)
        if not kind.is_weights:
            raise DataError(f"{path}: {why_not_weights(path, kind)}")
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror})") from None
    if path.name == _PICKLED and (path.parent / "data").is_dir():
        raise DataError(f"{path}: is a part of {_UNPACKED}")
    if path.suffix == _SHARDS:
        raise DataError(f"{path}: is a part of {_why_not_folder(path.parent).removeprefix('is ')}")
    part = _PART.search(path.name)
    if part and int(part[2]) > 1:
        raise DataError(
            f"{path}: is part {int(part[1])} of {int(part[2])} of a checkpoint; give its index, which lies beside it "
            "and ends in .index.json"
        )
    loaded, passed_over = _read_parts(path) if kind is FileKind.INDEX else _read(path, kind)
    chosen = state_dicts.choose(path, loaded, key)
    if passed_over:
        names = state_dicts.shorten(passed_over)
        console.warning(f"note: {path}: objects other than tensors were skipped: {names}")
    for note in chosen.notes:
        console.warning(f"note: {note}")
    for detail in chosen.details:
        console.detail(detail)
    own_layer = None if chosen.normalization is None else chosen.normalization.of_shares()
    return Content(chosen.tensors, find_class_names(loaded), own_layer)


def _why_not_folder(path: Path) -> str:
    """Return what a folder in place of a checkpoint is, and what to do; completes a message that begins with it."""
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    if "saved_model.pb" in names:
        return why_not_weights(path, FileKind.TENSORFLOW)
    if _PICKLED in names:
        return f"is {_UNPACKED}"
    if any(name.endswith(_SHARDS) for name in names):
        return (
            "is a distributed checkpoint of PyTorch; make one file of it by python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pth and give that"
        )
    found = [name for name in names if name.endswith(".index.json")] or [name for name in names if _is_named(name)]
    return f"is a folder; give the file of the weights in it{', ' if found else ''}{' or '.join(found[:3])}"


def _is_named(name: str) -> bool:
    """Tell whether a file in a folder is weights by its name; training keeps its own state beside them."""
    training = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
    return name.endswith(_WEIGHTS) and not name.startswith(training)


_Read = tuple[object, tuple[str, ...]]  # the content, and the types of objects that were skipped


def _read(path: Path, kind: FileKind) -> _Read:
    reader = {FileKind.SAFETENSORS: _read_safetensors, FileKind.PICKLE: _read_pickle}.get(kind, _read_torch)
    return reader(path, kind)


def _read_parts(path: Path) -> _Read:
    """Read the files that an index names, as transformers writes it, beside it: of each the tensors it is named for."""
    try:
        part_of: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        parts = [path.parent / Path(name).name for name in sorted(set(part_of.values()))]
        wanted = {tensor: path.parent / Path(name).name for tensor, name in part_of.items()}
    except (ValueError, TypeError, AttributeError) as err:
        raise DataError(f"{path}: not an index of a checkpoint ({_reason(err)}); {_AGAIN}") from None
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise DataError(f"{path}: {len(missing)} of its {len(parts)} parts are missing (first: {missing[0]}); {_AGAIN}")
    tensors: dict[object, object] = {}
    passed_over: dict[str, None] = {}
    for part in parts:
        kind = kind_of(part)
        if not kind.is_weights or kind is FileKind.INDEX:
            raise DataError(f"{part}: {why_not_weights(part, kind) if not kind.is_weights else 'is an index itself'}")
        loaded, skipped = _read(part, kind)
        tensors.update(_of_part(path, part, loaded, [name for name, file in wanted.items() if file == part]))
        passed_over.update(dict.fromkeys(skipped))
    return tensors, tuple(passed_over)


def _of_part(path: Path, part: Path, loaded: object, names: list[str]) -> dict[object, object]:
    """Return the tensors that an index says a part holds; others in it may be of another state of the training."""
    held: dict[object, object] = loaded if isinstance(loaded, dict) else {}
    lacking = [name for name in names if name not in held]
    if lacking:
        raise DataError(
            f"{part}: lacks {len(lacking)} of the {len(names)} tensors that {path.name} says it holds (first: "
            f"{lacking[0]}); {_AGAIN}, with the index and the other parts"
        )
    return {name: held[name] for name in names}


def _read_safetensors(path: Path, _: FileKind) -> _Read:
    try:
        return safetensors.torch.load_file(path), ()
    except safetensors.SafetensorError as err:
        raise DataError(f"{path}: not a whole safetensors file ({in_a_line(err)}); {_AGAIN}") from None


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
    except WrappedTensorError as err:
        raise DataError(f"{path}: {err}") from None
    except Exception as err:  # as above
        raise DataError(f"{path}: not a whole checkpoint ({_reason(err)}); {_AGAIN}") from None


def _reason(err: Exception) -> str:
    """Return the first line of a library's error, without the libraries' own advice."""
    reason = first_line(err).partition("weights_only")[0]
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
