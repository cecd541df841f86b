"""worker_pool.py: what it yields, and what it says of a worker that dies."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence

import pytest

from pipeline.errors import DataError, PipelineError
from pipeline.host.worker_pool import run_in_workers


def has_semaphores() -> bool:
    try:
        multiprocessing.get_context("spawn").Lock()
    except OSError:
        return False
    return True


# Without them threads do the work, and what ends a worker would end the tests.
in_processes = pytest.mark.skipif(not has_semaphores(), reason="no semaphores for processes: is /dev/shm mounted?")


def squares(numbers: Sequence[int]) -> list[int]:
    return [number**2 for number in numbers]


def die_at_seven(numbers: Sequence[int]) -> int:
    if 7 in numbers:
        os.kill(os.getpid(), signal.SIGKILL)
    return len(numbers)


def refuse(numbers: Sequence[int]) -> int:
    raise DataError(f"{numbers[0]} is odd")


def leave(numbers: Sequence[int]) -> int:
    os._exit(3)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_task_is_answered_once(workers: int) -> None:
    found = list(run_in_workers(squares, range(50), chunk=4, workers=workers, name="step", hint="go on"))
    assert sorted(square for some in found for square in some) == [number**2 for number in range(50)]
    assert {len(some) for some in found} == {4, 2}
    assert not multiprocessing.active_children()


@pytest.mark.slow
@in_processes
def test_signal_that_ended_a_worker_is_named_whatever_ends_the_others() -> None:
    for _ in range(3):  # the pool ends the others in a thread of its own, at the same time
        with pytest.raises(
            PipelineError,
            match=r"^step: worker process \d+ was ended by SIGKILL, as the kernel does when memory runs out; go on$",
        ):
            list(run_in_workers(die_at_seven, range(60), chunk=1, workers=3, name="step", hint="go on"))
        assert not multiprocessing.active_children()


@in_processes
def test_exit_of_a_worker_is_named() -> None:
    with pytest.raises(PipelineError, match=r"^step: worker process \d+ was ended by exit code 3; go on$"):
        list(run_in_workers(leave, [1], chunk=1, workers=1, name="step", hint="go on"))


def test_fault_of_a_worker_is_passed_on() -> None:
    with pytest.raises(DataError, match=r"^1 is odd$"):
        list(run_in_workers(refuse, [1], chunk=1, workers=1, name="step", hint="go on"))
    assert not multiprocessing.active_children()


def test_threads_do_the_work_when_the_system_has_no_semaphores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")  # as sem_open where /dev/shm is missing

    monkeypatch.setattr("_multiprocessing.SemLock", fail)
    found = run_in_workers(squares, range(10), chunk=4, workers=2, name="step", hint="go on")
    assert sorted(square for some in found for square in some) == [number**2 for number in range(10)]
    assert capsys.readouterr().err == (
        "note: step: threads take the place of worker processes, whose semaphores cannot be made (No such file or "
        "directory: is /dev/shm mounted?); this is slower\n"
    )
    with pytest.raises(DataError, match=r"^1 is odd$"):
        list(run_in_workers(refuse, [1], chunk=1, workers=1, name="step", hint="go on"))


def test_closing_drops_what_has_not_begun() -> None:
    taken = []

    def tasks() -> Iterator[int]:
        for number in range(10_000):
            taken.append(number)
            yield number

    found = run_in_workers(squares, tasks(), chunk=1, workers=2, name="step", hint="go on")
    next(found)
    found.close()
    assert len(taken) < 100
    assert not multiprocessing.active_children()
