"""Which network of an installed library a checkpoint is of: by the files beside it, by its name, or by its keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.errors import ConfigError, PipelineError
from pipeline.models import libraries, zoo
from pipeline.terminal.progress import progress_bar
from pipeline.weights import matching

_LEAST_ALIKE = 0.6  # of a checkpoint's keys, numbers aside, that a family's first network has
_MOST_FAMILIES = 3  # that are searched through
_LEAST_NAME = 5  # letters of a network's name that a file's name may tell


@dataclass(frozen=True)
class Found:
    """A network that a checkpoint fits."""

    row: zoo.Model
    classes: int


def classes_in(row: zoo.Model, state: Mapping[str, Tensor]) -> int | None:
    """Return how many classes a checkpoint of this network has; None if it is of another network."""
    try:
        with _Empty():
            network = zoo.build_network(row)
    except PipelineError:
        return None
    return matching.classes_of(network, state)


def find(path: Path, state: Mapping[str, Tensor]) -> list[Found]:
    """Return the networks of the installed libraries that a checkpoint fits; several may have the same tensors.

    Only where neither `config.json` beside the file nor its name tells the network are keys compared, which takes some
    seconds.
    """
    for library in filter(libraries.is_installed, libraries.LIBRARIES):
        for name in _told(library, path):
            found = _try(library, name, state)
            if found is not None:
                return [found]
    return [found for library in filter(libraries.is_installed, libraries.LIBRARIES) for found in _scan(library, state)]


def _try(library: str, name: str, state: Mapping[str, Tensor]) -> Found | None:
    try:
        row = zoo.find_model(library, name)
    except ConfigError:
        return None
    classes = classes_in(row, state)
    return None if classes is None else Found(row, classes)


def _told(library: str, path: Path) -> Iterator[str]:
    """Yield the names that the files tell: timm writes `config.json`, and both publish files named after networks."""
    record = timm_config(path)
    if library == "timm" and record is not None:
        yield str(record["architecture"])
    stem = re.sub(r"[^a-z0-9]+", "_", f"{path.parent.name}_{path.stem}".lower())
    known = [name for name in libraries.names_of(library) if len(name) >= _LEAST_NAME and name.lower() in stem]
    yield from sorted(known, key=len, reverse=True)


def timm_config(path: Path) -> dict[str, Any] | None:
    """Return what timm wrote beside a checkpoint in `config.json`; None where there is no such."""
    config = path.parent / "config.json"
    try:
        record = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_timm = isinstance(record, dict) and isinstance(record.get("pretrained_cfg"), dict) and "architecture" in record
    return record if is_timm else None


def _scan(library: str, state: Mapping[str, Tensor]) -> Iterator[Found]:
    names = list(libraries.names_of(library)) if library == "torchvision" else _alike(state)
    with progress_bar(len(names), f"{library}'s networks", "network") as progress:
        for name in names:
            found = _try(library, name, state)
            progress.update()
            if found is not None:
                yield found


def _alike(state: Mapping[str, Tensor]) -> list[str]:
    """Return the networks of timm's families whose first network has keys like these, the likest family first."""
    import timm

    wanted = _patterns(state)
    families = {module: timm.list_models(module=module) for module in timm.list_modules()}
    shares: dict[str, float] = {}
    with progress_bar(len(families), "timm's families", "family") as progress:
        for module, names in families.items():
            progress.update()
            if names:
                shares[module] = max(_share(wanted, name) for name in {names[0], min(names, key=len)})
    best = sorted(shares, key=lambda module: -shares[module])[:_MOST_FAMILIES]
    return [name for module in best if shares[module] >= _LEAST_ALIKE for name in families[module]]


def _share(wanted: set[str], name: str) -> float:
    try:
        with _Empty():
            network: nn.Module = libraries.build("timm", name, 1000)
    except PipelineError:
        return 0.0
    return len(wanted & _patterns(network.state_dict())) / max(1, len(wanted))


def _patterns(names: Iterable[str]) -> set[str]:
    return {re.sub(r"\d+", "#", name) for name in names}


class _Empty(TorchFunctionMode):
    """Parameters have shapes and no memory. Unlike in `torch.device("meta")`, a network may still compute numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.empty:
            kwargs = {**(kwargs or {}), "device": "meta"}
        return func(*args, **(kwargs or {}))
