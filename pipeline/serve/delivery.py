"""How answers get from the threads that compute them to whoever waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any, Protocol, TypeAlias

from pipeline.runtimes.base import Output

Outcome: TypeAlias = Output | Exception
Settled: TypeAlias = Sequence[tuple[Any, Outcome]]  # futures, and what becomes of them


class Delivery(Protocol):
    """Makes the futures of requests, and settles them."""

    def future(self) -> Any:
        """Return a new future: of asyncio, or of threads."""

    def settle(self, settled: Settled) -> None:
        """Give futures their results, or raise their exceptions; CancelledError cancels. Any thread may call it.

        Those that are cancelled or have an outcome keep it.
        """


class ToThreads:
    """For threads that wait."""

    def future(self) -> Future[Output]:
        return Future()

    def settle(self, settled: Settled) -> None:
        for future, outcome in settled:
            _settle(future, outcome)


class ToLoop:
    """For coroutines of one event loop, which wakes up once for all answers of a batch.

    A future of threads that asyncio wraps costs the event loop five times as much, and wakes it up for each answer.
    """

    _loop: asyncio.AbstractEventLoop | None = None

    def future(self) -> asyncio.Future[Output]:
        """Return a future of the loop that runs."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop.create_future()

    def settle(self, settled: Settled) -> None:
        assert self._loop is not None  # there are futures
        self._loop.call_soon_threadsafe(_settle_all, settled)


def _settle_all(settled: Settled) -> None:
    for future, outcome in settled:
        _settle(future, outcome)


def _settle(future: Any, outcome: Outcome) -> None:
    if future.done():
        return
    try:
        if isinstance(outcome, CancelledError):
            future.cancel()
        elif isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:  # another thread was faster
        pass
