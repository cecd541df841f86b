"""Many small tasks in worker processes, yielded as they finish; a worker that dies is reported with the cause."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import TypeVar

from pipeline.errors import PipelineError
from pipeline.host.processes import sigint_held_back, start_worker
from pipeline.terminal import console

T = TypeVar("T")
R = TypeVar("R")

_CHUNKS_PER_WORKER = 4  # submitted ahead; more would only cost memory


def run_in_workers(
    work: Callable[[Sequence[T]], R], tasks: Iterable[T], *, chunk: int, workers: int, name: str, hint: str
) -> Generator[R, None, None]:
    """Yield `work(chunk of tasks)` as the chunks finish. Close it to stop: chunks under way are finished.

    Args:
        work: a picklable function, called in worker processes; in threads where the system has no semaphores for them.
        tasks: plain data, read lazily.
        chunk: tasks that a worker gets at a time; Ctrl-C waits for one chunk at most.
        workers: processes.
        name: of the step, for messages.
        hint: what is kept and what to do, should a worker die.

    Raises:
        PipelineError: a worker was ended, or what `work` raised.
    """
    rest = iter(tasks)
    queue = iter(lambda: list(islice(rest, chunk)), [])
    pool = _open_pool(workers, name)
    processes: set[BaseProcess] = set()

    def submit(count: int) -> set[Future[R]]:
        with sigint_held_back():  # the pool starts a process when a task arrives and none is idle
            submitted = {pool.submit(work, some) for some in islice(queue, count)}
        processes.update(multiprocessing.active_children())
        return submitted

    try:
        waiting = submit(workers * _CHUNKS_PER_WORKER)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            waiting |= submit(len(done))
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        pool.shutdown()  # ends its thread, which also waits for the workers: of two waiters only one gets the exit code
        raise PipelineError(f"{name}: {_death_text(processes)}; {hint}") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _open_pool(workers: int, name: str) -> Executor:
    # Spawned, not forked: the caller may hold the threads of a numerical library, which do not survive a fork.
    spawn = multiprocessing.get_context("spawn")
    try:
        return ProcessPoolExecutor(workers, mp_context=spawn, initializer=start_worker)
    except OSError as err:  # the pool's semaphores lie in /dev/shm, which a chroot may lack
        console.note(
            f"note: {name}: threads take the place of worker processes, whose semaphores cannot be made "
            f"({err.strerror}: is /dev/shm mounted?); this is slower"
        )
        return ThreadPoolExecutor(workers)


def _death_text(processes: Iterable[BaseProcess]) -> str:
    """Return which worker died, and why. The pool ends the others with SIGTERM."""
    codes = {process.pid: process.exitcode for process in processes if process.exitcode not in (0, None)}
    pid, code = next(((p, c) for p, c in codes.items() if c != -signal.SIGTERM), (None, -signal.SIGTERM))
    cause = f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name
    hint = ", as the kernel does when memory runs out" if code == -signal.SIGKILL else ""
    worker = f"worker process {pid}" if pid else "a worker process"
    return f"{worker} was ended by {cause}{hint}"
