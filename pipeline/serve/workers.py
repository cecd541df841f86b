"""Several worker processes behind the same two ports: started together, watched, replaced, stopped together.

Each worker is a whole server, and listens on both ports: with SO_REUSEPORT the kernel gives every new connection to one
of them. This process holds the ports, and loads neither models nor servers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import Enum
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from pipeline.errors import BackendError, ConfigError
from pipeline.host.processes import sigint_held_back
from pipeline.runtimes.base import Runtime
from pipeline.serve.ports import reserve
from pipeline.serve.settings import Models, Part, Settings, Wanted, check_exposure, describe_address
from pipeline.serve.worker import GO, LOADED, LOOK, STOP, Task, run_worker
from pipeline.terminal import console

# Where prometheus_client keeps what each worker counts, by its own name.
_SHARED = "PROMETHEUS_MULTIPROC_DIR"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STEADY_S = 60.0  # a worker that lived so long is replaced at once
_LONGEST_PAUSE_S = 30.0  # before replacing one that ends again and again
_LAST_S = 10.0  # more than a worker has to stop


def serve_in_workers(models: Models, wanted: Wanted, settings: Settings, count: int) -> None:
    """As `serve`, in so many processes. SIGTERM, Ctrl-C and SIGHUP reach all of them.

    Raises:
        ConfigError, BackendError: as `serve`; not on Linux; a worker ended before it served.
    """
    if sys.platform != "linux":
        raise ConfigError(f"--workers {count}: needs Linux, whose kernel gives each connection to one of them")
    check_exposure(settings)
    with ExitStack() as opened:
        http_port = opened.enter_context(reserve(settings.host, settings.http_port, "--http_port"))
        grpc_port = opened.enter_context(reserve(settings.host, settings.grpc_port, "--grpc_port"))
        settings = replace(settings, http_port=http_port, grpc_port=grpc_port)
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="int8-pipeline-")))
        os.environ[_SHARED] = str(folder)
        opened.callback(os.environ.pop, _SHARED)
        inbox = opened.enter_context(_received_signals())
        _Workers(models, wanted, settings, count, folder, inbox).run()


class _State(Enum):
    STARTING = 1
    LOADED = 2
    SERVING = 3


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    begun: float
    state: _State = _State.STARTING
    fault: Exception | None = None  # what it reported


@dataclass
class _Place:
    """A worker's number, and what remains when it is replaced."""

    part: Part
    worker: _Worker | None = None
    due: float = 0.0  # when it is replaced
    pause: float = 0.0  # s, before the last replacement


class _Workers:
    def __init__(
        self, models: Models, wanted: Wanted, settings: Settings, count: int, folder: Path, inbox: socket.socket
    ) -> None:
        self._models, self._wanted, self._settings, self._folder = models, wanted, settings, folder
        self._inbox = inbox  # the number of each signal, as a byte
        # Forked from a process that has imported everything and started nothing: half the memory of spawned workers,
        # and replacements are there sooner. Numba, of the extra `fast`, is passed over where it is not installed.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["pipeline.serve.server", f"pipeline.runtimes.{_module_of(wanted.runtime)}", "numba"]
        )
        self._places = [_Place(Part(number, count)) for number in range(count)]
        self._opened = self._serving = False  # all workers were allowed to open the ports; all have opened them
        self._kill_at: float | None = None  # when those that do not stop are ended

    def run(self) -> None:
        """Return when all have stopped."""
        try:
            for place in self._places:
                self._start(place, replaces=False)
            while self._kill_at is None or self._living():
                self._wait()
            _say("stopped")
        finally:
            for worker in self._living():
                worker.process.kill()
                worker.process.join()

    def _start(self, place: _Place, *, replaces: bool) -> None:
        ours, theirs = self._context.Pipe()
        wanted = replace(self._wanted, part=place.part)
        task = Task(self._models, wanted, self._settings, self._folder, replaces, console.configuration())
        process = self._context.Process(target=run_worker, args=(task, theirs), daemon=True)
        with sigint_held_back():
            process.start()
        theirs.close()
        place.worker = _Worker(process, ours, time.monotonic())

    def _living(self) -> list[_Worker]:
        return [place.worker for place in self._places if place.worker is not None]

    def _wait(self) -> None:
        """Wait until something happens, and act on it."""
        if self._kill_at is None:
            moments = [place.due for place in self._places if place.worker is None]
        else:
            moments = [self._kill_at]
        seconds = max(0.0, min(moments) - time.monotonic()) if moments else None
        happened = wait([self._inbox, *(worker.pipe for worker in self._living())], seconds)
        if self._inbox in happened:
            for number in self._inbox.recv(64):
                self._obey(number)
        for place in self._places:
            if place.worker is not None and place.worker.pipe in happened:
                self._hear(place, place.worker)
        self._act_in_time(time.monotonic())

    def _act_in_time(self, now: float) -> None:
        """Start the replacements that are due; end workers that do not stop."""
        if self._kill_at is None:
            for place in self._places:
                if place.worker is None and place.due <= now:
                    self._start(place, replaces=True)
        elif now >= self._kill_at:
            for worker in self._living():
                console.warning(f"worker process {worker.process.pid} does not stop; it is ended")
                worker.process.kill()
            self._kill_at = now + _LAST_S

    def _obey(self, number: int) -> None:
        """Act on a signal."""
        if number == signal.SIGHUP:
            self._tell_all(LOOK)
            return
        if self._kill_at is None:
            seconds = self._settings.drain_seconds + self._settings.grace_seconds + _LAST_S
            self._kill_at = time.monotonic() + seconds
            _say(f"stopping: clients have {self._settings.drain_seconds:g} s to leave")
        for worker in self._living():
            if worker.state is not _State.SERVING:
                worker.process.kill()
        self._tell_all(STOP)

    def _tell_all(self, message: str) -> None:
        for worker in self._living():
            with contextlib.suppress(OSError):  # it has ended, and `_hear` notices
                worker.pipe.send(message)

    def _hear(self, place: _Place, worker: _Worker) -> None:
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(place, worker)
            return
        if isinstance(message, Exception):
            worker.fault = message
        elif message == LOADED:
            worker.state = _State.LOADED
            self._open_ports()
        else:
            _, names = message
            worker.state = _State.SERVING
            self._say_where(names)

    def _open_ports(self) -> None:
        """Let workers listen: the first ones when all have loaded, a replacement at once."""
        waiting = [worker for worker in self._living() if worker.state is _State.LOADED]
        if self._opened or len(waiting) == len(self._places):
            self._opened = True
            for worker in waiting:
                with contextlib.suppress(OSError):
                    worker.pipe.send(GO)

    def _say_where(self, names: list[str]) -> None:
        if not self._serving and all(worker.state is _State.SERVING for worker in self._living()):
            self._serving = True
            served, count = ", ".join(names), len(self._places)
            console.step(f"serving {served} by {count} workers: {describe_address(self._settings)}")

    def _bury(self, place: _Place, worker: _Worker) -> None:
        """Plan the replacement of a worker that has ended, unless the server stops.

        Raises:
            what it reported; BackendError: it ended before all had served.
        """
        worker.process.join(_LAST_S)  # it has closed its pipe, and frees its memory
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        place.worker = None
        for path in self._folder.glob(
            f"gauge_live*_{worker.process.pid}.db"
        ):  # as prometheus_client's mark_process_dead
            path.unlink(missing_ok=True)
        if self._kill_at is not None:
            return
        cause = _cause_of(worker)
        if not self._serving:
            raise worker.fault or BackendError(
                f"a worker process ended before it served: {cause}; give fewer --workers"
            )
        now = time.monotonic()
        steady = now - worker.begun >= _STEADY_S
        place.pause = 0.0 if steady else min(_LONGEST_PAUSE_S, 2 * place.pause or 1.0)
        place.due = now + place.pause
        console.warning(f"worker {place.part.number + 1} (process {worker.process.pid}) ended: {cause}; it is replaced")


def _module_of(runtime: Runtime) -> str:
    return "ort" if runtime is Runtime.ONNXRUNTIME else "ov"


def _cause_of(worker: _Worker) -> str:
    if worker.fault is not None:
        return str(worker.fault)
    code = worker.process.exitcode or 0
    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"


@contextlib.contextmanager
def _received_signals() -> Iterator[socket.socket]:
    """Yield a socket that receives the number of each signal to this process as a byte."""
    inbox, outbox = socket.socketpair()
    outbox.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    wakeup = signal.set_wakeup_fd(outbox.fileno())
    try:
        with inbox, outbox:
            yield inbox
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        console.step(text)
