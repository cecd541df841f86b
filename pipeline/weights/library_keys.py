"""The names that the tensors of a library's networks have: what tells which network a checkpoint may be of."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.artefacts import write_json
from pipeline.errors import PipelineError
from pipeline.host.user_cache import cache_folder
from pipeline.models import libraries
from pipeline.weights import matching

_IN_PLACE = re.compile(r"[a-z\d]_$")  # fill_, normal_, ...


def patterns(names: Iterable[str]) -> set[int]:
    """Return what the names have in common with those of other depths, each as a checksum."""
    return {zlib.crc32(re.sub(r"\d+", "#", name).encode()) for name in names}


def digest(names: Iterable[str]) -> str:
    """Return what tells a network's keys from others': without counters, which old checkpoints do not have."""
    counted = sorted(name for name in names if not name.endswith(matching.COUNTER))
    return hashlib.sha256("\n".join(counted).encode()).hexdigest()[:16]


class KnownKeys:
    """The keys of the networks of a library, which are made to learn them and then kept in the user's cache.

    A network whose keys are others is of no checkpoint; one that has the same is compared shape by shape.
    """

    def __init__(self, library: str) -> None:
        self._library = library
        self._path = cache_folder() / "networks" / f"{library}-{libraries.version_of(library)}.json"
        try:
            read = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            read = None
        self._known: dict[str, Any] = read if _is_table(read) else {}
        self._read = len(self._known)

    def digest(self, name: str) -> str | None:
        """Return the digest of a network's keys; None where it cannot be made without its weights."""
        found: str | None = self._of(name)["digest"]
        return found

    def patterns(self, name: str) -> list[int]:
        """Return `patterns` of a network's keys; none where it cannot be made without its weights."""
        found: list[int] = self._of(name)["patterns"]
        return found

    def has_branches(self, name: str) -> bool:
        """Tell whether a network has branches of training."""
        return bool(self._of(name)["branches"])

    def save(self) -> None:
        """Write what was learnt; a cache that cannot be written is done without."""
        if len(self._known) > self._read:
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._path, self._known)

    def _of(self, name: str) -> dict[str, Any]:
        if name not in self._known:
            try:
                with without_values():
                    network: nn.Module = libraries.build(self._library, name, 1000)
                keys = list(network.state_dict())
                branches = any(key.startswith(f"{branch}.") for branch in libraries.AUXILIARY for key in keys)
                learnt = {"digest": digest(keys), "patterns": sorted(patterns(keys)), "branches": branches}
            except PipelineError:
                learnt = {"digest": None, "patterns": [], "branches": False}
            self._known[name] = learnt
        found: dict[str, Any] = self._known[name]
        return found


def _is_table(read: object) -> bool:
    return isinstance(read, dict) and all(
        isinstance(each, dict) and each.keys() == {"digest", "patterns", "branches"} for each in read.values()
    )


def made_without_values(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a network with shapes and no memory; one that computes with its weights while it is made gets them.

    Raises:
        PipelineError: it cannot be made.
    """
    try:
        with without_values():
            return make()
    except PipelineError:
        return make()


def without_values() -> TorchFunctionMode:
    """Return a context in which networks are made with shapes and no memory."""
    return _Empty()


class _Empty(TorchFunctionMode):
    """Unlike in `torch.device("meta")`, a network may still compute numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            return func(*args, **{**kwargs, "device": "meta"})
        changed = args[0] if args else kwargs.get("tensor")  # as functions of torch.nn.init are seen here
        if isinstance(changed, Tensor) and changed.is_meta and _IN_PLACE.search(func.__name__):
            return changed  # initial values of nothing, for which half of the time was taken
        return func(*args, **kwargs)
