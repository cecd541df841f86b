"""Keeps the served models equal to the packages on the disk, without losing a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from pipeline.errors import PipelineError
from pipeline.packages.package import open_package
from pipeline.serve.loading import Loaded, load, resident_mib
from pipeline.serve.model_folder import Files, Found
from pipeline.serve.served import Plane
from pipeline.serve.settings import Wanted
from pipeline.terminal import console

_LAST_ANSWERS_S = 0.02  # between two checks whether an unloaded model still computes

Key = tuple[str, str]  # name, version


@dataclass(frozen=True)
class _Held:
    """A package that is served."""

    found: Found
    loaded: Loaded


class LoadedPackages:
    """The loaded packages. Called by the event loop only; packages are opened and closed in threads beside it."""

    def __init__(self, plane: Plane, wanted: Wanted, find: Callable[[], Sequence[Found]], keep: int) -> None:
        """Begin with none.

        Args:
            find: returns what is on the disk.
            keep: newest versions of each model that are served.
        """
        self._plane, self._wanted, self._find, self._keep = plane, wanted, find, keep
        self._held: dict[Key, _Held] = {}
        self._refused: dict[Found, str] = {}  # packages that could not be loaded, and why
        self._tried: dict[Found, Files] = {}  # what these held then
        self._seen: dict[Found, Files] = {}  # and at the last look
        self._missing: set[Key] = set()  # at the last look
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def most_requests(self) -> int:
        """Requests of one image each that the loaded models hold, waiting and computing."""
        setups = [held.loaded.model.setup for held in self._held.values()]
        return sum(self._wanted.max_queue + setup.batch * setup.streams for setup in setups)

    async def look(self, *, again: bool = False, strict: bool = False) -> None:
        """Load what is new or was replaced, and unload what is gone or older than the versions to keep.

        What cannot be loaded is reported once, and the version from before goes on. It is tried again when its files
        have changed, as those of a copy that was under way, and are as they were at the look before.

        Args:
            again: try again what was refused.
            strict: raise what a package is refused for.
        """
        if again:
            self._refused.clear()
        try:
            found = await asyncio.to_thread(self._find)
        except PipelineError as err:
            console.warning(f"{err}; the models from before stay")
            return
        for name, versions in groupby(found, key=lambda each: each.name):
            assert name
            await self._follow(list(versions), strict)
        self._unload_missing({(each.name, each.version) for each in found})

    def faults(self) -> list[str]:
        """Return why packages were refused, one line each."""
        return list(self._refused.values())

    async def close(self) -> None:
        """Unload everything."""
        for held in list(self._held.values()):
            await asyncio.to_thread(held.loaded.close)
        await asyncio.gather(*self._leaving)

    async def _follow(self, versions: Sequence[Found], strict: bool) -> None:
        """Serve the newest of a model's versions that can be loaded, and unload the others."""
        newest_first = sorted(versions, key=lambda each: int(each.version), reverse=True)
        kept: list[Found] = []
        for found in self._once(newest_first):
            if len(kept) < self._keep and await self._is_served(found, strict):
                kept.append(found)
        for key in [key for key in self._held if key[0] == versions[0].name]:
            # An older version goes only when a newer one is there.
            if kept and int(key[1]) < min(int(each.version) for each in kept) and len(kept) == self._keep:
                self._unload(key)

    def _once(self, versions: Sequence[Found]) -> Iterator[Found]:
        """Yield the first package of each version, and report others of it."""
        known: dict[str, Found] = {}
        for found in versions:
            first = known.setdefault(found.version, found)
            if first is found:
                yield found
            elif found not in self._refused:
                self._refused[found] = (
                    f"{found.folder}: is {found.name} version {found.version}, as {first.folder} is; put versions into "
                    f"{found.name}/1, {found.name}/2, ..."
                )
                console.warning(self._refused[found])

    async def _is_served(self, found: Found, strict: bool) -> bool:
        """Load a package if it is not loaded as it is now; tell whether its version is served after that."""
        key = (found.name, found.version)
        held = self._held.get(key)
        if held is not None and held.found == found:
            return True
        if found not in self._refused or self._is_another(found):
            try:
                await self._load(found)
                self._refused.pop(found, None)
                return True
            except PipelineError as err:
                if strict:
                    raise
                self._refused[found], self._tried[found] = str(err), found.files
                stays = "; the one from before stays" if found.name in self._plane.models else ""
                console.warning(f"{found.folder}: refused{stays}: {err}")
        return held is not None

    def _is_another(self, found: Found) -> bool:
        """Tell whether the files of a refused package have changed since it was tried, and change no more."""
        before, self._seen[found] = self._seen.get(found), found.files
        return before == found.files != self._tried.get(found)

    async def _load(self, found: Found) -> None:
        before = resident_mib()
        loaded = await asyncio.to_thread(_open, found, self._wanted)
        after = resident_mib()
        replaced = self._plane.put(loaded.model)
        old = self._held.get((found.name, found.version))
        self._held[found.name, found.version] = _Held(found, loaded)
        console.step(
            f"{found.name} version {found.version} from {found.folder} in {loaded.described}; memory {after} MiB, "
            f"{max(0, after - before)} of it new"
        )
        if replaced is not None and old is not None:
            self._leave(old)

    def _unload_missing(self, present: set[Key]) -> None:
        """Unload what was missing twice in turn: while a package is replaced it is absent for a moment."""
        missing = set(self._held) - present
        for key in missing & self._missing:
            self._unload(key)
        self._missing = missing

    def _unload(self, key: Key) -> None:
        held = self._held.pop(key)
        self._plane.remove(held.loaded.model)
        console.step(f"{key[0]} version {key[1]}: unloaded")
        self._leave(held)

    def _leave(self, held: _Held) -> None:
        """Close a package when it has answered what is under way. New requests do not reach it any more."""

        async def leave() -> None:
            while held.loaded.model.under_way:
                await asyncio.sleep(_LAST_ANSWERS_S)
            await asyncio.to_thread(held.loaded.close)

        task = asyncio.create_task(leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


def _open(found: Found, wanted: Wanted) -> Loaded:
    return load(open_package(found.folder), found.version, wanted)
