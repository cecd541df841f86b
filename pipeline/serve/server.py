"""The server: opens the package, listens on both ports, and stops without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import grpc
import uvicorn
from PIL import Image

from pipeline.errors import ArtefactError
from pipeline.serve import metrics, rest
from pipeline.serve.access import AccessLog
from pipeline.serve.clients import Clients
from pipeline.serve.exposition import make_registry
from pipeline.serve.guard import Admission
from pipeline.serve.limits import Capacity
from pipeline.serve.listening import LAST_RESPONSES_S, make_http_server, make_rpc_server
from pipeline.serve.loaded_packages import LoadedPackages
from pipeline.serve.ports import join, listen
from pipeline.serve.served import Plane
from pipeline.serve.settings import Models, Settings, Wanted, check_exposure, describe_address
from pipeline.serve.shared_clients import SharedStore
from pipeline.serve.siblings import Siblings
from pipeline.serve.tls import Certificates
from pipeline.serve.tokens import Tokens
from pipeline.serve.tracing import open_tracing
from pipeline.serve.triton import statistics
from pipeline.serve.worker import ParentLink
from pipeline.terminal import console

_LOOK_S = 2.0  # between two checks of files that may change
_STARTUP_S = 60.0  # for the HTTP server to listen


def serve(models: Models, wanted: Wanted, settings: Settings, parent: ParentLink | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; a second one does not wait.

    Args:
        parent: of a worker process, which serves beside others and is told by its parent what to do.

    Raises:
        ConfigError: others could reach it without TLS or authentication, or a file that a flag names is invalid.
        BackendError: a port is taken, or the runtime refuses the model.
    """
    check_exposure(settings)
    certificates = Certificates(settings.tls) if settings.tls is not None else None
    tokens = Tokens(settings.tokens) if settings.tokens is not None else None
    with ExitStack() as opened:
        log = AccessLog(settings.access_log) if settings.access_log is not None else None
        if log is not None:
            opened.callback(log.close)
        tracing = open_tracing()
        if tracing is not None:
            opened.callback(tracing.close)
        store = None
        if parent is not None:
            store = opened.enter_context(closing(SharedStore(parent.folder / "clients", wanted.part)))
        admission = Admission(tokens, Clients(settings.shares, store=store), log, settings.open_metrics, tracing)
        _allow_many_connections()
        Image.MAX_IMAGE_PIXELS = settings.max_pixels
        take = listen if parent is None else join
        listener = opened.enter_context(take(settings.host, settings.http_port))
        _run(_Server(models, wanted, settings, admission, certificates, parent).run(listener))


def _allow_many_connections() -> None:
    """Raise the limit of open files as far as the system allows: each connection is one, and 1024 is a common limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS accepts less than it reports
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _run(serving: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:  # it is not available on every platform
        asyncio.run(serving)
    else:  # a seventh less of the interpreter's time for a request
        uvloop.run(serving)


class _Server:
    def __init__(
        self,
        models: Models,
        wanted: Wanted,
        settings: Settings,
        admission: Admission,
        certificates: Certificates | None,
        parent: ParentLink | None,
    ) -> None:
        self._models, self._settings, self._admission, self._certificates = models, settings, admission, certificates
        self._parent = parent
        self._capacity = Capacity(settings.max_body, wanted.max_queue, settings.patience)
        self._stop, self._look_around = asyncio.Event(), asyncio.Event()
        self._plane = Plane()
        self._packages = LoadedPackages(self._plane, wanted, models.find, models.keep)

    async def run(self, listener: socket.socket) -> None:
        """Serve until told to stop."""
        try:
            await self._look_at_models(strict=not self._models.watched)
            if not self._plane.models:
                raise ArtefactError("; ".join(self._packages.faults()) or f"{self._models.where}: no package there")
            if self._parent is not None:
                await self._parent.wait_for_go()
            await self._serve(listener)
        finally:
            await self._packages.close()

    async def _serve(self, listener: socket.socket) -> None:
        """Open both ports, and close them when told to stop."""
        folder = self._parent.folder if self._parent is not None else None
        siblings = Siblings(folder, lambda: statistics(self._plane.loaded))
        app = rest.make_app(
            self._plane, self._capacity, self._admission, siblings, make_registry(folder), self._settings.origins
        )
        http = make_http_server(app, self._capacity.patience, self._certificates)
        address = (self._settings.host, self._settings.grpc_port)
        rpc, grpc_port = make_rpc_server(
            self._plane,
            self._capacity,
            self._admission,
            siblings,
            address,
            self._certificates,
            shared=folder is not None,
        )
        async with siblings.answered():
            with self._told_what_to_do(http):
                await rpc.start()
                watching = asyncio.create_task(self._watch())
                serving = asyncio.create_task(http.serve(sockets=[listener]))
                await self._wait(_STARTUP_S, lambda: http.started)
                self._report_serving(listener.getsockname()[1], grpc_port)
                await self._stop.wait()
                watching.cancel()
                await self._end(http, rpc, serving)

    def _report_serving(self, http_port: int, grpc_port: int) -> None:
        # What was imported and loaded stays; without it a collection has little to look through.
        gc.collect()
        gc.freeze()
        metrics.WORKERS.set(1)
        if self._parent is not None:
            self._parent.report_serving(list(self._plane.models))
            return
        known = replace(self._settings, http_port=http_port, grpc_port=grpc_port)
        console.step(f"serving {', '.join(self._plane.models)}: {describe_address(known)}")

    @contextlib.contextmanager
    def _told_what_to_do(self, http: uvicorn.Server) -> Iterator[None]:
        """Obey signals while the body runs: a second one to stop does not wait. A worker obeys its parent too."""
        loop = asyncio.get_running_loop()
        look, signals = self._look_around.set, {signal.SIGTERM: lambda: stop(False)}

        def stop(at_once: bool) -> None:
            http.force_exit = http.force_exit or at_once
            self._plane.stopping = True
            self._stop.set()

        if self._parent is None:
            signals = {number: lambda: stop(self._plane.stopping) for number in (signal.SIGTERM, signal.SIGINT)}
            signals[signal.SIGHUP] = look
        else:  # systemd sends SIGTERM to workers too, so that only what the parent says counts as a second time
            self._parent.obey(stop, look)
        for number, handler in signals.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    async def _watch(self) -> None:
        """Check periodically, and on SIGHUP, whether files have changed."""
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._look_around.wait(), _LOOK_S)
            told = self._look_around.is_set()
            self._look_around.clear()
            if self._certificates is not None:
                await asyncio.to_thread(self._certificates.refresh)
            if self._models.watched or told:
                await self._look_at_models(again=told)

    async def _look_at_models(self, *, again: bool = False, strict: bool = False) -> None:
        await self._packages.look(again=again, strict=strict)
        self._capacity.max_requests = self._packages.most_requests

    async def _end(self, http: uvicorn.Server, rpc: grpc.aio.Server, serving: asyncio.Task[None]) -> None:
        """Let clients leave, then refuse new requests, finish those under way, and close both ports."""
        self._say(f"stopping: clients have {self._settings.drain_seconds:g} s to leave")
        await self._wait(self._settings.drain_seconds, lambda: http.force_exit)
        # With an error response on open connections: a closed one would not tell a client what became of its request.
        for model in self._plane.loaded:
            model.refuse()
        await self._wait(LAST_RESPONSES_S, lambda: http.force_exit)
        await self._wait(self._settings.grace_seconds, lambda: http.force_exit or not self._under_way())
        http.should_exit = True
        await asyncio.gather(rpc.stop(0 if http.force_exit else LAST_RESPONSES_S), serving)
        self._say("stopped")

    def _under_way(self) -> int:
        # gRPC would end those that wait as CANCELLED.
        return sum(model.under_way for model in self._plane.loaded) + self._capacity.waiting(1)

    async def _wait(self, seconds: float, until: Callable[[], bool]) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < deadline and not until():
            await asyncio.sleep(0.02)

    def _say(self, text: str) -> None:
        """Print the progress of stopping, which of workers the parent does."""
        if self._parent is None:
            with contextlib.suppress(OSError):  # the reader of the output may be gone by then, the clients are not
                console.step(text)
