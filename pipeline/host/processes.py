"""Worker processes that start together, leave Ctrl-C to their parent and do not outlive it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

from pipeline.errors import BackendError, PipelineError

Report = Callable[[Any], None]  # sends a message to the parent; may be called from any thread
Barrier = Callable[[], None]  # "I am ready": returns when every worker is
Work = Callable[[Any, Report, Barrier], None]
SharingWork = Callable[[Any, Report, Barrier, Any], None]
Opening = Callable[[], AbstractContextManager[Any]]

_REST_S = 1.0
_READY, _GO, _DONE = "ready", "go", "done"


@contextlib.contextmanager
def sigint_held_back() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block. Processes started within never receive it, not even while they start."""
    # multiprocessing starts its resource tracker with the first process, and unblocks SIGINT after that.
    resource_tracker.ensure_running()
    pressed = threading.Event()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the new process inherits it
    # The mask is this thread's. Python calls the handler in the main thread whichever thread received the signal, and
    # a progress bar has its own thread.
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, frame: pressed.set()) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if pressed.is_set():
        signal.raise_signal(signal.SIGINT)


def start_worker() -> None:
    """Ignore Ctrl-C, and end when the parent ends: a worker whose parent was killed would work, or wait, forever.

    Called first in a spawned process, in its main thread.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # workers are spawned
    parent.join()
    os._exit(1)


def run_sharing(work: SharingWork, tasks: Sequence[Any], opening: Opening, on_message: Report) -> float:
    """As `run_workers`, for several tasks; `work` gets what `opening` opened, once for all of them, as fourth argument.

    A separate process opens it and forks into the workers, so they share its memory as long as they only read it.

    Args:
        opening: a picklable context manager. What it opens must survive a fork: none of its threads may be needed.
            A lock that a thread holds at the fork stays locked in the workers, so the fork waits until all are idle.
    """
    return _Processes(on_message, shares=True).run(partial(_fork_workers, work, opening), [tasks])


def _fork_workers(work: SharingWork, opening: Opening, tasks: Sequence[Any], report: Report, barrier: Barrier) -> None:
    with opening() as opened:
        _wait_for_rest()
        forked = _Processes(report, "fork", ready=barrier)
        forked.run(lambda task, report, barrier: work(task, report, barrier, opened), tasks)


def _wait_for_rest() -> None:
    """Wait until all other threads of this process sleep, for a second at most. Linux only.

    A joined thread of Python, or a runtime's thread that was told to end, still runs destructors for a while.
    """
    deadline = time.monotonic() + _REST_S
    while _busy_threads() and time.monotonic() < deadline:
        time.sleep(0.005)


def _busy_threads() -> list[int]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "SZX" and int(task.name) != threading.get_native_id():
                found.append(int(task.name))
    return found


def run_workers(work: Work, tasks: Sequence[Any], on_message: Report) -> float:
    """Run `work(task, report, barrier)` for every task: a single one here, several in separate processes.

    Args:
        work: a function defined in a module, so that another process can import it.
        tasks: plain data, one for each worker.
        on_message: receives what the workers report, one message at a time.

    Returns:
        The moment (`time.perf_counter()`) when all workers were ready.

    Raises:
        BackendError: a worker died.
        Exception: what a worker raised; the others are ended.
    """
    if len(tasks) > 1:
        return _Processes(on_message).run(work, tasks)
    begun = 0.0
    lock = threading.Lock()

    def report(message: Any) -> None:
        with lock:
            on_message(message)

    def barrier() -> None:
        nonlocal begun
        begun = time.perf_counter()

    work(tasks[0], report, barrier)
    return begun


class _Processes:
    """Worker processes with a pipe each. A worker that fails or dies ends the run."""

    def __init__(
        self, on_message: Report, method: str = "spawn", *, ready: Barrier = lambda: None, shares: bool = False
    ) -> None:
        """Prepare to start.

        Args:
            method: spawn, or fork, in which the threads of runtimes do not survive.
            ready: called when all workers are ready, before they start work.
            shares: whether a worker starts processes itself.
        """
        self._on_message, self._all_ready, self._shares = on_message, ready, shares
        self._context: Any = multiprocessing.get_context(method)  # its base class lacks Process
        self._workers: dict[Connection, BaseProcess] = {}
        self._ready = 0
        self._begun = 0.0

    def run(self, work: Work, tasks: Sequence[Any]) -> float:
        try:
            with sigint_held_back():
                for task in tasks:
                    self._start(work, task)
            at_work = set(self._workers)
            while at_work:
                for pipe in wait(list(at_work)):
                    assert isinstance(pipe, Connection)
                    if self._take_message(pipe) == _DONE:
                        at_work.discard(pipe)
        finally:
            for process in self._workers.values():
                process.terminate()
            for process in self._workers.values():
                process.join()
        return self._begun

    def _start(self, work: Work, task: Any) -> None:
        ours, theirs = self._context.Pipe()
        # A daemon must not have children. The children of such a worker end when it ends.
        process = self._context.Process(target=_worker_main, args=(work, task, theirs), daemon=not self._shares)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about a fork beside threads; see `run_sharing`
            process.start()
        theirs.close()
        self._workers[ours] = process

    def _take_message(self, pipe: Connection) -> Any:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            self._raise_death(pipe)
        if isinstance(message, BaseException):
            raise message
        if message == _READY:
            self._ready += 1
            if self._ready == len(self._workers):
                self._all_ready()
                self._begun = time.perf_counter()
                self._send_go()
        elif message != _DONE:
            self._on_message(message)
        return message

    def _send_go(self) -> None:
        for pipe in self._workers:
            with contextlib.suppress(OSError):  # a dead worker is detected where its messages are read
                pipe.send(_GO)

    def _raise_death(self, pipe: Connection) -> NoReturn:
        process = self._workers[pipe]
        process.join()
        code = process.exitcode or 0
        cause = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        hint = "; the machine may have run out of memory: use fewer -p, -i or -b" if code == -signal.SIGKILL else ""
        raise BackendError(f"worker process {process.pid} ended unexpectedly: {cause}{hint}")


def _worker_main(work: Work, task: Any, pipe: Connection) -> None:
    start_worker()
    lock = threading.Lock()

    def report(message: Any) -> None:
        with lock:
            pipe.send(message)

    def barrier() -> None:
        report(_READY)
        pipe.recv()

    try:
        work(task, report, barrier)
        report(_DONE)
    except PipelineError as err:
        report(type(err)(str(err)))
    except Exception:
        report(RuntimeError(f"in a worker process:\n{traceback.format_exc()}"))
