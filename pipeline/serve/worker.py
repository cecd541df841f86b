"""A worker process: one of several servers behind the same ports, with a pipe to the parent that started it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.serve.settings import Models, Settings, Wanted
from pipeline.terminal import console

# From the worker: the models are loaded; both ports are open. To the worker: open them; stop; look for packages.
LOADED, SERVING = "loaded", "serving"
GO, STOP, LOOK = "go", "stop", "look"

Stop = Callable[[bool], None]  # is told whether to stop at once


@dataclass(frozen=True)
class Task:
    """What a worker needs to know."""

    models: Models
    wanted: Wanted
    settings: Settings
    folder: Path  # that the workers share
    replaces: bool  # a worker that ended unexpectedly
    console: Mapping[str, bool]


class ParentLink:
    """The worker's end of the pipe to its parent. Called by the event loop only."""

    def __init__(self, pipe: Connection, folder: Path) -> None:
        self._pipe, self.folder = pipe, folder
        self._go = asyncio.Event()
        self._stops = 0  # how often the parent said so
        self._stop: Stop = lambda at_once: None
        self._look: Callable[[], None] = lambda: None

    async def wait_for_go(self) -> None:
        """Report that the models are loaded, and return when the parent lets the worker open its ports."""
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._listen)
        self._tell(LOADED)
        await self._go.wait()

    def obey(self, stop: Stop, look: Callable[[], None]) -> None:
        """Call these when the parent says so, and `stop` when the parent is gone."""
        self._stop, self._look = stop, look
        if self._stops:
            stop(False)

    def report_serving(self, names: list[str]) -> None:
        """Report that both ports are open, and which models are served."""
        self._tell((SERVING, names))

    def _tell(self, message: object) -> None:
        with contextlib.suppress(OSError):  # `_listen` notices that the parent is gone
            self._pipe.send(message)

    def _listen(self) -> None:
        try:
            while self._pipe.poll():
                self._follow(self._pipe.recv())
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self._go.set()
            self._follow(STOP)

    def _follow(self, message: str) -> None:
        if message == GO:
            self._go.set()
        elif message == LOOK:
            self._look()
        else:
            self._stops += 1
            self._stop(self._stops > 1)


def run_worker(task: Task, pipe: Connection) -> None:
    """Serve in this process, which was started for it, and report what ends it."""
    # The parent receives Ctrl-C and SIGHUP as well, and tells its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    part = task.wanted.part
    console.configure(**task.console, prefix=f"worker {part.number + 1}: ")
    try:
        from pipeline.serve import metrics
        from pipeline.serve.server import serve

        if task.replaces:
            metrics.RESTARTS.inc()
        serve(task.models, task.wanted, task.settings, ParentLink(pipe, task.folder))
    except PipelineError as err:
        _report(pipe, type(err)(str(err)))
    except Exception:
        _report(pipe, RuntimeError(f"in a worker process:\n{traceback.format_exc()}"))


def _report(pipe: Connection, fault: Exception) -> None:
    with contextlib.suppress(OSError):  # the parent is gone
        pipe.send(fault)
