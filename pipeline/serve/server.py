"""The server: opens the package, listens on both ports, and stops without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import uvicorn
from PIL import Image

from pipeline.errors import ArtefactError
from pipeline.serve import rest
from pipeline.serve.access import AccessLog
from pipeline.serve.clients import Clients
from pipeline.serve.guard import Door
from pipeline.serve.limits import Room
from pipeline.serve.listening import LAST_WORDS, listen, make_http_server, make_rpc_server
from pipeline.serve.loading import Wanted
from pipeline.serve.model_folder import Found
from pipeline.serve.served import Plane
from pipeline.serve.settings import Settings, check_exposure
from pipeline.serve.shelf import Shelf
from pipeline.serve.tls import Certificates
from pipeline.serve.tokens import Tokens
from pipeline.terminal import console

_LOOK_S = 2.0  # between two checks of files that may change
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Models:
    """What is served."""

    where: str  # for errors
    find: Callable[[], Sequence[Found]]
    keep: int  # newest versions of each model
    watched: bool  # look for new packages now and then, not only on SIGHUP


def serve(models: Models, wanted: Wanted, settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; a second one does not wait.

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
        door = Door(tokens, Clients(settings.shares), log, settings.open_metrics)
        _allow_many_connections()
        Image.MAX_IMAGE_PIXELS = settings.max_pixels
        listener = opened.enter_context(listen(settings.host, settings.http_port))
        _run(_Server(models, wanted, settings, door, certificates).run(listener))


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
        self, models: Models, wanted: Wanted, settings: Settings, door: Door, certificates: Certificates | None
    ) -> None:
        self._models, self._settings, self._door, self._certificates = models, settings, door, certificates
        self._room = Room(settings.max_body, wanted.max_queue, settings.patience)
        self._stop, self._look_around = asyncio.Event(), asyncio.Event()
        self._plane = Plane()
        self._shelf = Shelf(self._plane, wanted, models.find, models.keep)

    async def run(self, listener: socket.socket) -> None:
        """Serve until told to stop."""
        try:
            await self._look_at_models(strict=not self._models.watched)
            if not self._plane.models:
                raise ArtefactError("; ".join(self._shelf.faults()) or f"{self._models.where}: no package there")
            await self._serve(listener)
        finally:
            await self._shelf.close()

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        app = rest.make_app(self._plane, self._room, self._door)
        http = make_http_server(app, self._room.patience, self._certificates)
        address = (self._settings.host, self._settings.grpc_port)
        rpc, grpc_port = make_rpc_server(self._plane, self._room, self._door, address, self._certificates)
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._told_to_stop, http)
        loop.add_signal_handler(signal.SIGHUP, self._look_around.set)
        try:
            await rpc.start()
            watching = asyncio.create_task(self._watch())
            serving = asyncio.create_task(http.serve(sockets=[listener]))
            self._say_where(listener.getsockname()[1], grpc_port)
            await self._stop.wait()
            watching.cancel()
            await self._end(http, rpc, serving)
        finally:
            for number in (*_SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _say_where(self, http_port: int, grpc_port: int) -> None:
        host, names = self._settings.host, ", ".join(self._plane.models)
        shown = f"[{host}]" if ":" in host else host
        secure = "s" if self._certificates is not None else ""
        console.step(f"serving {names}: http{secure}://{shown}:{http_port} and grpc{secure}://{shown}:{grpc_port}")

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
        await self._shelf.look(again=again, strict=strict)
        self._room.max_requests = self._shelf.most_requests

    def _told_to_stop(self, http: uvicorn.Server) -> None:
        if self._plane.stopping:
            http.force_exit = True
        self._plane.stopping = True
        self._stop.set()

    async def _end(self, http: uvicorn.Server, rpc: grpc.aio.Server, serving: asyncio.Task[None]) -> None:
        """Let clients leave, then refuse new requests, finish those under way, and close both ports."""
        _say(f"stopping: clients have {self._settings.drain_seconds:g} s to leave")
        await self._wait(self._settings.drain_seconds, lambda: http.force_exit)
        # With an error response on open connections: a closed one would not tell a client what became of its request.
        for model in self._plane.loaded:
            model.refuse()
        await self._wait(LAST_WORDS, lambda: http.force_exit)
        await self._wait(self._settings.grace_seconds, lambda: http.force_exit or not self._under_way())
        http.should_exit = True
        await asyncio.gather(rpc.stop(0 if http.force_exit else LAST_WORDS), serving)
        _say("stopped")

    def _under_way(self) -> int:
        return sum(model.under_way for model in self._plane.loaded)

    async def _wait(self, seconds: float, until: Callable[[], bool]) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < deadline and not until():
            await asyncio.sleep(0.02)


def _say(text: str) -> None:
    """Print the progress of stopping; the reader of the output may be gone by then, the clients are not."""
    with contextlib.suppress(OSError):
        console.step(text)
