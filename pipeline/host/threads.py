"""Pools of threads, and the end of threads as the kernel sees it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_LONGEST_S = 1.0
_STEP_S = 0.001


@contextmanager
def thread_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool that drops tasks not begun when the body fails; the pool's own exit would wait for all of them."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def one_ahead(pool: Executor, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield what the function returns of each item, in order; a thread of the pool computes the next one meanwhile.

    `Executor.map` would compute all of them, which then wait in memory.
    """
    coming: Future[R] | None = None
    for item in items:
        present, coming = coming, pool.submit(function, item)
        if present is not None:
            yield present.result()
    if coming is not None:
        yield coming.result()


def wait_for_end(native_ids: Iterable[int]) -> None:
    """Wait until those of some threads that Python has joined are gone, for a second at most. Linux only.

    A thread that was joined still runs the destructors that native libraries registered for its end.

    Args:
        native_ids: of `threading.get_native_id`; threads that Python still runs are not waited for.
    """
    running = {thread.native_id for thread in threading.enumerate()}
    ending = [Path(f"/proc/self/task/{native_id}") for native_id in native_ids if native_id not in running]
    deadline = time.monotonic() + _LONGEST_S
    while any(task.exists() for task in ending) and time.monotonic() < deadline:
        time.sleep(_STEP_S)
