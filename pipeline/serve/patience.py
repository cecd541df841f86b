"""How long tasks wait for what clients send: one limit, and one timer, for all of them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from typing import Any, TypeVar

Received = TypeVar("Received")


class Patience:
    """Ends each wait that takes longer than so many seconds. A timer for each would cost as much as reading a message.

    Of one event loop.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until: dict[asyncio.Task[Any], float] = {}  # by the loop's clock, of tasks that wait, the first one first
        self._timer: asyncio.TimerHandle | None = None

    async def wait_for(self, receiving: Awaitable[Received]) -> Received:
        """Return what arrives in time. A task waits for one thing at a time.

        Raises:
            asyncio.TimeoutError: it does not arrive.
        """
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs
        loop = asyncio.get_running_loop()
        cancelled = 0
        if sys.version_info >= (3, 11):
            cancelled = task.cancelling()
        self._until[task] = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_at(self._until[task], self._end_overdue, loop)
        try:
            return await receiving
        except asyncio.CancelledError:
            if task in self._until:  # cancelled by somebody else
                raise
            if sys.version_info >= (3, 11) and task.uncancel() > cancelled:  # by somebody else at the same moment
                raise
            raise asyncio.TimeoutError from None
        finally:
            self._until.pop(task, None)

    def _end_overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for task, until in list(self._until.items()):
            if until > loop.time():
                self._timer = loop.call_at(until, self._end_overdue, loop)
                return
            del self._until[task]
            task.cancel()
