"""Which network of an installed library a checkpoint is of: by the files beside it, by its name, or by its keys."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import ConfigError, PipelineError
from pipeline.models import libraries, zoo
from pipeline.terminal.progress import progress_bar
from pipeline.weights import library_index, matching
from pipeline.weights.library_keys import KnownKeys, digest, made_without_values, patterns

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
        network = made_without_values(lambda: zoo.build_network(row))
    except PipelineError:
        return None
    return matching.classes_of(network, state)


def describe_renamed(row: zoo.Model, state: Mapping[str, Tensor]) -> str:
    """Return `matching.describe_renamed` of a network of the table, or of a library."""
    of_library = row.design is zoo.Design.INSTALLED
    network = made_without_values(lambda: zoo.build_network(row)) if of_library else None
    return matching.describe_renamed(row, state, network)


def find(path: Path, state: Mapping[str, Tensor]) -> list[Found]:
    """Return the networks of the installed libraries that a checkpoint fits; several may have the same tensors.

    Only where neither `config.json` beside the file nor its name tells the network are keys and shapes compared: with
    those of the index that comes with this program, and where it has no such network, with those of all that are
    installed, which takes a minute, and less once the user's cache knows what keys the networks have.
    """
    for library in filter(libraries.is_installed, libraries.LIBRARIES):
        for name in _told(library, path):
            told = _try(library, name, state)
            if told is not None:
                return [told]
    found = [
        each for library in filter(libraries.is_installed, libraries.LIBRARIES) for each in _listed(library, state)
    ]
    if found:
        return found
    for library in filter(libraries.is_installed, libraries.LIBRARIES):
        known = KnownKeys(library)
        try:
            found += _scan(library, state, known)
        finally:
            known.save()
    return found


def _listed(library: str, state: Mapping[str, Tensor]) -> list[Found]:
    """Return the networks that the index tells, and those of their families that it does not know yet."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    installed = set(libraries.names_of(library))
    named = [name for name in library_index.candidates(library, shapes) if name in installed]
    newer = [name for name in libraries.relatives(library, named) if not library_index.is_known(library, name)]
    tried = (_try(library, name, state) for name in [*named, *newer])
    return [each for each in tried if each is not None]


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


def _scan(library: str, state: Mapping[str, Tensor], known: KnownKeys) -> Iterator[Found]:
    names = list(libraries.names_of(library)) if library == "torchvision" else _alike(state, known)
    wanted = digest(state)
    renamed = matching.has_paddle_names(state)
    with progress_bar(len(names), f"{library}'s networks", "network") as progress:
        for name in names:
            progress.update()
            # Branches of training may be missing in a checkpoint, so that its keys are others.
            may_fit = renamed or known.has_branches(name) or known.digest(name) == wanted
            found = _try(library, name, state) if may_fit else None
            if found is not None:
                yield found


def _alike(state: Mapping[str, Tensor], known: KnownKeys) -> list[str]:
    """Return the networks of timm's families whose first network has keys like these, the likest family first."""
    timm = libraries.load("timm")
    wanted = patterns(state)
    families = {module: timm.list_models(module=module) for module in timm.list_modules()}
    shares: dict[str, float] = {}
    with progress_bar(len(families), "timm's families", "family") as progress:
        for module, names in families.items():
            progress.update()
            if names:
                shares[module] = max(_share(wanted, known.patterns(name)) for name in {names[0], min(names, key=len)})
    best = sorted(shares, key=lambda module: -shares[module])[:_MOST_FAMILIES]
    return [name for module in best if shares[module] >= _LEAST_ALIKE for name in families[module]]


def _share(wanted: set[int], patterns: Collection[int]) -> float:
    return len(wanted.intersection(patterns)) / max(1, len(wanted))
