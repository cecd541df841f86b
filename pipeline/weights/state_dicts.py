"""Finding the state dict in what a checkpoint holds: wrappers, EMA weights, prefixes, entries other than weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.weights.placeholders import Placeholder
from pipeline.weights.prefixes import NO_WEIGHTS, strip, without_training_parts
from pipeline.weights.reparametrized import Normalization, fold, take_normalization
from pipeline.weights.tensor_reader import as_tensor

# Names that training scripts give to the weights; the first one present is taken.
_RAW = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "weights", "params", "module")
# Words in the names of averaged weights: exponential moving average, stochastic weight averaging.
_AVERAGED = frozenset({"ema", "swa", "averaged", "average", "avg"})
# Words in the names of what a training script needs to continue.
_AUXILIARY = frozenset(
    {"optimizer", "optimizers", "optim", "scheduler", "schedulers", "scaler", "criterion", "loss", "loops", "callbacks"}
    | {"args", "config", "cfg", "hyper", "hparams", "rng", "random", "metrics", "history", "meta"}
)
# The entries of an optimizer's state dict.
_OPTIMIZER = frozenset({"state", "param_groups"})
# A network and its copy, by the first part of their names.
_COPIES = (frozenset({"student", "teacher"}), frozenset({"online", "target"}))
# Last parts of the names of weights that quantizers replace: bitsandbytes and others, GPTQ and AWQ.
_QUANTIZED = frozenset({"weight", "qweight"})
_PACKED = "_packed_params"  # of torch.ao.quantization
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # those of 8 bits have scales beside them
_MOST_NESTING = 4  # {"ema": {"model": {"state_dict": ...}}}
_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Found:
    """A state dict in a checkpoint."""

    key: str  # its path, parts joined by "."; "" for the checkpoint itself
    tensors: dict[str, Tensor]
    others: tuple[str, ...]  # names of entries other than tensors

    @property
    def is_averaged(self) -> bool:
        return any(_words(part) & _AVERAGED for part in self.key.split("."))


@dataclass(frozen=True)
class Chosen:
    """The weights of a checkpoint."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]  # what a user should know about the choice, a line each
    details: tuple[str, ...]  # what else there is in the file
    normalization: Normalization | None = None  # of images, by a layer before the network, which is left out


def choose(path: Path, loaded: object, key: str | None) -> Chosen:
    """Return the weights in a checkpoint.

    Of raw and averaged (EMA) weights the averaged ones are taken: timm and torchvision evaluate them.

    Args:
        path: of the checkpoint, for messages.
        loaded: its content.
        key: which of several state dicts to take; None: as above.

    Raises:
        DataError: there is no state dict, or there are several and `key` does not choose.
    """
    found = _distinct([part for each in _state_dicts(loaded) for part in _split(each)])
    if not found and _is_optimizer(loaded):
        raise DataError(f"{path}: holds the state of an optimizer and no weights; give what the model was saved to")
    if not found:
        names = sorted(str(name) for name in loaded)[:_SHOWN] if isinstance(loaded, Mapping) else _type_of(loaded)
        raise DataError(
            f"{path}: no state dict in it (found {names}); wanted tensors by name, or wrapped in 'state_dict'"
        )
    taken, notes = _choose(path, found, key)
    _check_float(path, taken)
    within, normalization = take_normalization(taken.tensors)
    tensors, prefix = strip(without_training_parts(within))
    if normalization is not None:
        writer = "init writes them" if normalization.of_shares() else "--mean of init, --std of init"
        notes.append(
            f"{path}: a layer before the network normalises images, by {normalization}; it is left out, so that they "
            f"must stand in process_ops ({writer})"
        )
    kept = {name: value for name, value in tensors.items() if name.rpartition(".")[2] not in NO_WEIGHTS}
    taken_tensors = {id(tensor) for tensor in kept.values()}  # names differ by more than the prefix
    dropped = sorted(name for name, tensor in within.items() if id(tensor) not in taken_tensors)
    kept, folded = fold(kept)
    if folded:
        notes.append(f"{path}: pruned or normalised weights, kept in two parts, were put together: {shorten(folded)}")
    if dropped:
        notes.append(f"{path}: tensors other than weights were left out: {shorten(dropped)}")
    entries = loaded if isinstance(loaded, Mapping) else {}
    beside = [f"{name}" for name in entries if name != taken.key.split(".")[0]] if taken.key else []
    others = [*taken.others, *beside]
    details = [f"{path}: weights in {taken.key!r}"] if taken.key else []
    details += [f"{path}: names of tensors without {prefix!r}"] if prefix else []
    details += [f"{path}: entries other than weights: {shorten(others)}"] if others else []
    return Chosen(kept, tuple(notes), tuple(details), normalization)


def _distinct(found: Sequence[Found]) -> list[Found]:
    """Return the state dicts without those that hold the very tensors of one before, as fastai's callbacks do."""
    return list({frozenset(map(id, each.tensors.values())): each for each in reversed(found)}.values())[::-1]


def _check_float(path: Path, taken: Found) -> None:
    """Raise DataError where the weights are integers or packed, as quantizers save them: their scales are elsewhere."""
    kinds = {
        name: str(value.dtype).removeprefix("torch.")
        for name, value in taken.tensors.items()
        if name.rpartition(".")[2] in _QUANTIZED and value.dim() > 1 and value.dtype not in _FLOATS
    }
    kinds |= {name: "packed" for name in taken.others if name.rpartition(".")[2] == _PACKED}
    if kinds:
        first = next(iter(kinds))
        raise DataError(
            f"{path}: {len(kinds)} of its weights are quantized (first: {first}, {kinds[first]}); wanted the float "
            "weights that they were made of"
        )


def shorten(names: Sequence[str]) -> str:
    """Return the first of some names, and their number where there are more."""
    return ", ".join(names[:_SHOWN]) + (f", ... {len(names)} in all" if len(names) > _SHOWN else "")


def _type_of(value: object) -> str:
    return type(value).__name__


def _words(name: str) -> frozenset[str]:
    return frozenset(re.split(r"[^a-z]+", name.lower()))


def _entries(value: object) -> Mapping[object, object]:
    """Return the entries of a dictionary, a list, an object that acts as one, or a module; none for anything else.

    Entries of lists, and those whose keys are numbers, have their number as name; tensors among them have no name.
    """
    if isinstance(value, Mapping):
        return {f"{key}" if isinstance(key, int) else key: item for key, item in value.items() if _is_named(key, item)}
    if isinstance(value, list | tuple):
        return {f"{index}": item for index, item in enumerate(value) if as_tensor(item) is None}
    if not isinstance(value, Placeholder):
        return {}
    if value.items:
        return value.items
    state = value.state if isinstance(value.state, Mapping) else {}
    return dict(_module_tensors(state)) if "_modules" in state else state


def _is_named(key: object, item: object) -> bool:
    return isinstance(key, str) or (isinstance(key, int) and as_tensor(item) is None)


def _module_tensors(state: Mapping[object, object], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    """Yield parameters and buffers of a pickled module by their names in its state dict."""
    skipped = state.get("_non_persistent_buffers_set")
    for group in ("_parameters", "_buffers"):
        for name, value in _items(state.get(group)):
            if value is not None and not (isinstance(skipped, set) and name in skipped):
                yield f"{prefix}{name}", value
    for name, module in _items(state.get("_modules")):
        if isinstance(module, Placeholder) and isinstance(module.state, Mapping) and depth < 40:
            yield from _module_tensors(module.state, f"{prefix}{name}.", depth + 1)


def _items(value: object) -> list[tuple[str, object]]:
    return [(f"{name}", item) for name, item in value.items()] if isinstance(value, Mapping) else []


def _state_dicts(value: object, at: tuple[str, ...] = ()) -> list[Found]:
    """Return the state dicts below a value: of a level with tensors and the levels below it, whichever has more."""
    entries = _entries(value)
    if entries.keys() >= _OPTIMIZER:
        return []
    tensors = {
        name: made for name, item in entries.items() if isinstance(name, str) if (made := as_tensor(item)) is not None
    }
    below: list[Found] = []
    if len(at) < _MOST_NESTING:
        for name, item in entries.items():
            if isinstance(name, str) and name not in tensors and not _words(name) & _AUXILIARY:
                below += _state_dicts(item, (*at, name))
    own = sum(tensor.ndim > 0 for tensor in tensors.values())
    if own == 0 or any(len(each.tensors) > own for each in below):
        return below
    return [Found(".".join(at), tensors, tuple(str(name) for name in entries if name not in tensors))]


def _is_optimizer(value: object) -> bool:
    """Tell whether a checkpoint is, or holds, what an optimizer saves."""
    return _entries(value).keys() >= _OPTIMIZER or any(
        _entries(item).keys() >= _OPTIMIZER for item in _entries(value).values()
    )


def _split(found: Found) -> list[Found]:
    """Return the networks in one state dict that holds a network twice: raw and averaged, or student and teacher."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in found.tensors.items():
        first, _, rest = name.partition(".")
        groups.setdefault(first, {})[rest] = tensor
    shapes = {first: _shapes(strip(group)[0]) for first, group in groups.items()}
    at = f"{found.key}." if found.key else ""
    if groups.keys() in _COPIES and all(each == shapes[next(iter(shapes))] for each in shapes.values()):
        return [Found(f"{at}{first}", group, found.others) for first, group in groups.items()]
    averaged = next((first for first in groups if _words(first) & _AVERAGED and shapes[first]), None)
    raw = next((first for first in groups if first != averaged and shapes[first] == shapes.get(averaged or "")), None)
    if averaged is None:
        return [found]
    if raw is None:
        own = {name: tensor for name, tensor in found.tensors.items() if name.partition(".")[0] != averaged}
        if _shapes(strip(own)[0]) != shapes[averaged]:
            return [found]
        # A network that keeps its average as a part of itself.
        return [Found(f"{at}raw", own, found.others), Found(f"{at}{averaged}", groups[averaged], found.others)]
    others = (*found.others, *(first for first in groups if first not in (averaged, raw)))
    return [Found(f"{at}{first}", groups[first], others) for first in (raw, averaged)]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.ndim}


def _choose(path: Path, found: Sequence[Found], key: str | None) -> tuple[Found, list[str]]:
    known = shorten([each.key for each in found])
    if key is not None:
        named = [each for each in found if each.key == key] or [each for each in found if key in each.key.split(".")]
        if len(named) != 1:
            raise DataError(
                f"{path}: checkpoint_key {key!r} names no state dict of it; wanted one of {known or 'none'}"
            )
        return named[0], []
    raw = [each for each in found if not each.is_averaged]
    averaged = next((each for each in found if each.is_averaged), None)
    usual = ([each for each in raw if name in each.key.split(".")] for name in _RAW)
    main = next((named[0] for named in usual if len(named) == 1), None)
    main = main or (raw[0] if len(raw) == 1 else None)
    if main is None and averaged is None:
        raise DataError(
            f"{path}: holds {len(found)} state dicts ({known}); frontend.checkpoint_key (--checkpoint_key of init and "
            "export) says which to take"
        )
    if main is None or averaged is None:
        return main or averaged or found[0], []
    hint = "frontend.checkpoint_key (--checkpoint_key of init and export) takes the other"
    lacking = len(_shapes(strip(main.tensors)[0]).keys() - _shapes(strip(averaged.tensors)[0]).keys())
    if lacking:
        return main, [f"{path}: {main.key!r} taken, as {averaged.key!r} lacks {lacking} of its tensors; {hint}"]
    return averaged, [f"{path}: the averaged weights {averaged.key!r} taken, not {main.key!r}; {hint}"]
