"""What a worker asks the others: the statistics of their models, so that a client gets those of the whole server."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson

_PATIENCE_S = 2.0  # for a worker that is busy; one that does not answer is left out

Statistics = list[dict[str, Any]]  # of each model and version


def worker_pids(folder: Path) -> list[int]:
    """Return the processes that answer requests."""
    return sorted(int(path.stem) for path in folder.glob("*.sock"))


class Siblings:
    """The other workers, each with a Unix socket in the folder that they share."""

    def __init__(self, folder: Path | None, own: Callable[[], Statistics]) -> None:
        """Know them.

        Args:
            folder: None: there are no others.
            own: returns the statistics of this process.
        """
        self._folder, self._own = folder, own

    @contextlib.asynccontextmanager
    async def answered(self) -> AsyncIterator[None]:
        """Answer the others while the body runs."""
        if self._folder is None:
            yield
            return
        path = self._folder / f"{os.getpid()}.sock"
        async with await asyncio.start_unix_server(self._answer, path):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    async def statistics(self) -> Statistics:
        """Return the statistics of all workers, summed by model and version."""
        total = self._own()
        if self._folder is not None:
            others = [pid for pid in worker_pids(self._folder) if pid != os.getpid()]
            for found in await asyncio.gather(*(self._ask(self._folder / f"{pid}.sock") for pid in others)):
                total = merge(total, found)
        return total

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(orjson.dumps(self._own()))
            await writer.drain()
            writer.close()

    async def _ask(self, path: Path) -> Statistics:
        writer = None
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_unix_connection(path), _PATIENCE_S)
            found: Statistics = orjson.loads(await asyncio.wait_for(reader.read(), _PATIENCE_S))
        except (OSError, asyncio.TimeoutError, orjson.JSONDecodeError):  # it has just ended
            return []
        finally:
            if writer is not None:
                writer.close()
        return found


def merge(first: Statistics, second: Statistics) -> Statistics:
    """Return the sums of two workers' statistics in Triton's form, by model and version."""
    total = {(each["name"], each["version"]): each for each in first}
    for each in second:
        key = each["name"], each["version"]
        total[key] = _sum(total[key], each) if key in total else each
    return [total[key] for key in sorted(total)]


def _sum(first: Any, second: Any, key: str = "") -> Any:
    if isinstance(first, dict):
        return {name: _sum(value, second[name], name) for name, value in first.items()}
    if isinstance(first, list):  # of batches, by their sizes
        by_size = {each["batch_size"]: each for each in first}
        for each in second:
            size = each["batch_size"]
            by_size[size] = _sum(by_size[size], each) if size in by_size else each
        return [by_size[size] for size in sorted(by_size)]
    if key in ("name", "version", "batch_size"):
        return first
    return max(first, second) if key == "last_inference" else first + second
