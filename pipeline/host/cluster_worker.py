"""What a worker process of Ray does: it answers chunks of tasks, and returns what came of each as plain data."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import BackendError, PipelineError

Answer = Callable[[Sequence[Any]], Any]  # to a chunk of tasks
Open = Callable[[Any], Answer]  # turns a run's setup into the above, once in each worker process

_MOST_DEATHS = 3  # of workers at one chunk; a lost node causes one, lack of memory all of them


@dataclass(frozen=True)
class Fault:
    """What a worker raised, as data: Ray would wrap the exception in its own, with a traceback."""

    kind: type[Exception]
    text: str


@dataclass(frozen=True)
class Success:
    answer: Any
    deaths: int  # of workers before this one


class Deaths:
    """Counts how often each chunk was begun: Ray would repeat a chunk that kills its worker for ever."""

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}

    def begin(self, chunk: int) -> int:
        """Return how often the chunk was begun before."""
        before = self._begun.get(chunk, 0)
        self._begun[chunk] = before + 1
        return before

    def end(self, chunk: int) -> None:
        self._begun.pop(chunk, None)


_opened: dict[Any, Answer] = {}  # of this worker process, by run; Ray gives a process to one job only


def answer_chunk(row: dict[str, Any], open_work: Open, setup: Any, deaths: Any, folder: str) -> dict[str, Any]:
    """Answer a chunk in a worker process of Ray."""
    with contextlib.suppress(OSError):  # where there is no such folder, names must be absolute
        os.chdir(folder)
    return {"outcome": pickle.dumps(_answer(row["number"], row["tasks"], open_work, setup, deaths))}


def _answer(number: int, tasks: bytes, open_work: Open, setup: Any, deaths: Any) -> Success | Fault:
    import ray

    died = ray.get(deaths.begin.remote(number))
    if died > _MOST_DEATHS:
        return Fault(
            BackendError,
            f"--engine ray: {died} workers died one after the other at the same images; the nodes may have run out of "
            "memory: what is done is kept, use fewer -b or nodes with more memory and run the same command again",
        )
    outcome: Success | Fault
    try:
        if setup not in _opened:
            _opened[setup] = open_work(ray.get(setup))
        outcome = Success(_opened[setup](pickle.loads(tasks)), died)
    except PipelineError as err:
        outcome = Fault(type(err), str(err))
    except ModuleNotFoundError as err:
        outcome = Fault(
            BackendError, f"node {socket.gethostname()}: {err.name} is not installed there; install the same on all"
        )
    except Exception:
        outcome = Fault(RuntimeError, f"in a Ray worker on {socket.gethostname()}:\n{traceback.format_exc()}")
    deaths.end.remote(number)
    return outcome
