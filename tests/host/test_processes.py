"""processes.py: workers that start together, and what is said of one that fails or dies.

Each worker imports this module, so it imports little.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import BackendError
from pipeline.host.processes import Barrier, Report, run_sharing, run_workers

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def _raise_bug(task: int, report: Report, barrier: Barrier) -> None:
    barrier()
    if task == 1:
        raise ValueError("a bug")
    threading.Event().wait()


def _leave(task: int, report: Report, barrier: Barrier) -> None:
    if task == 1:
        import os

        os._exit(3)
    barrier()


def _echo(task: int, report: Report, barrier: Barrier) -> None:
    barrier()
    report((task, 2 * task))


def test_run_workers_shows_the_traceback_of_a_bug_and_ends_the_others() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in a worker process:.*in _raise_bug.*ValueError: a bug"):
        run_workers(_raise_bug, [0, 1], lambda message: None)


def test_run_workers_tells_how_a_worker_ended_before_the_start() -> None:
    with pytest.raises(BackendError, match=r"^worker process \d+ ended unexpectedly: exit code 3$"):
        run_workers(_leave, [0, 1], lambda message: None)


def test_run_workers_hands_over_every_message() -> None:
    messages: list[tuple[int, int]] = []
    run_workers(_echo, [1, 2, 3], messages.append)
    assert sorted(messages) == [(1, 2), (2, 4), (3, 6)]


@contextmanager
def _large(size: int = 200 << 20) -> Iterator[npt.NDArray[np.uint8]]:
    import numpy as np

    yield np.ones(size, np.uint8)


@contextmanager
def _not_there() -> Iterator[None]:
    raise BackendError("there is no model")
    yield


def _use(task: int, report: Report, barrier: Barrier, shared: npt.NDArray[np.uint8]) -> None:
    barrier()
    total = int(shared[::4096].sum())  # a byte of every page
    told = dict(re.findall(r"^(\w+): +(\d+) kB$", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE))
    own = int(told["Private_Clean"]) + int(told["Private_Dirty"])
    report((os.getpid(), total, int(told["Rss"]) >> 10, own >> 10))


def _die(task: int, report: Report, barrier: Barrier, shared: object) -> None:
    barrier()
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


def _fail(task: int, report: Report, barrier: Barrier, shared: object) -> None:
    barrier()
    raise ValueError("a bug")


@contextmanager
def _held_for_a_while() -> Iterator[threading.Lock]:
    lock, held = threading.Lock(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            hashlib.pbkdf2_hmac("sha256", b"busy", b"outside of Python", 100_000)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    yield lock
    holder.join()


def _take(task: int, report: Report, barrier: Barrier, shared: threading.Lock) -> None:
    barrier()
    report(shared.acquire(timeout=2))


sharing = pytest.mark.skipif(sys.platform != "linux", reason="models are shared on Linux alone")


@sharing
def test_run_sharing_maps_what_was_opened_once() -> None:
    messages: list[tuple[int, int, int, int]] = []
    run_sharing(_use, range(4), _large, messages.append)
    assert len({pid for pid, *_ in messages}) == 4
    assert {total for _, total, _, _ in messages} == {(200 << 20) // 4096}
    assert all(rss > 200 and own < 60 for *_, rss, own in messages), messages  # MiB


@sharing
def test_run_sharing_forks_when_no_thread_is_at_something() -> None:
    """OpenVINO takes a lock when a thread that has computed ends: forked then, one in a hundred runs hung."""
    messages: list[bool] = []
    run_sharing(_take, [0, 1], _held_for_a_while, messages.append)
    assert messages == [True, True]


@sharing
def test_run_sharing_tells_how_a_worker_ended() -> None:
    with pytest.raises(BackendError, match=r"^worker process \d+ ended unexpectedly: signal 9 \(SIGKILL\)"):
        run_sharing(_die, [0, 1], partial(_large, 1), lambda message: None)


@sharing
def test_run_sharing_shows_a_bug_and_passes_a_fault_on() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in a worker process:.*in _fail.*ValueError: a bug"):
        run_sharing(_fail, [0, 1], partial(_large, 1), lambda message: None)
    with pytest.raises(BackendError, match=r"^there is no model$"):
        run_sharing(_fail, [0, 1], _not_there, lambda message: None)
