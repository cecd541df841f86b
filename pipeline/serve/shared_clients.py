"""Accounts of clients that several workers share, so that a limit holds for the whole server."""

from __future__ import annotations

import fcntl
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import numpy as np

from pipeline.serve.clients import Account
from pipeline.serve.settings import Part

_SLOTS = 16_384
_WINDOW = 16  # slots that a client may be in, from the one that its name gives


class SharedStore:
    """A table in a file that every worker maps. A lock of the file holds others off, and ends with its process.

    Where a window is full, the client of it that was idle for longest is forgotten.
    """

    def __init__(self, path: Path, part: Part) -> None:
        """Open it, or make it; what this worker's predecessor had under way is no more.

        Args:
            part: which of the workers this is.
        """
        row = np.dtype(
            [("key", "u8"), ("seen", "f8"), ("requests", "f8"), ("bytes", "f8"), ("under_way", "i4", (part.of,))]
        )
        size = _SLOTS * row.itemsize
        self._number = part.number
        self._file = path.open("a+b")
        with self._locked():
            if path.stat().st_size < size:
                self._file.truncate(size)  # zeros: free slots
            self._map = mmap.mmap(self._file.fileno(), size)
            self._rows = np.frombuffer(self._map, row)
            self._rows["under_way"][:, self._number] = 0

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def account(self, name: str, new: Account) -> Iterator[Account]:
        """Yield the account of a client, or `new` for an unknown one; changes are kept unless the body raises."""
        key = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") or 1
        with self._locked():
            slot, known = self._find(key)
            row = self._rows[slot]
            if known:
                new.requests, new.bytes, new.seen = float(row["requests"]), float(row["bytes"]), float(row["seen"])
                new.under_way = int(row["under_way"].sum())
            before = new.under_way
            yield new
            if not known:
                row["under_way"] = 0
            row["key"], row["seen"], row["requests"], row["bytes"] = key, new.seen, new.requests, new.bytes
            row["under_way"][self._number] += new.under_way - before

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _find(self, key: int) -> tuple[int, bool]:
        """Return the slot of a client, and whether it has it already."""
        slots = (key + np.arange(_WINDOW, dtype=np.uint64)) % _SLOTS
        keys = self._rows["key"][slots]
        found = np.flatnonzero(keys == key)
        if len(found):
            return int(slots[found[0]]), True
        free = np.flatnonzero(keys == 0)
        if len(free):
            return int(slots[free[0]]), False
        busy = self._rows["under_way"][slots].any(axis=1)
        oldest = np.where(busy, np.inf, self._rows["seen"][slots])
        return int(slots[int(np.argmin(oldest))]), False
