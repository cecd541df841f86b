"""The server: opens the package, listens on both ports, and stops without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import uvicorn

from pipeline.packages.package import Package
from pipeline.serve import rest
from pipeline.serve.limits import Room
from pipeline.serve.listening import LAST_WORDS, listen, make_http_server, make_rpc_server
from pipeline.serve.loading import Loaded, Wanted, load
from pipeline.serve.served import Plane
from pipeline.terminal import console

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Settings:
    """How to serve."""

    host: str
    http_port: int  # 0: any that is free
    grpc_port: int
    max_body: int  # bytes of a request
    patience: float  # s for a request's head, and more for its body
    drain_seconds: float  # told to stop: still serving, while clients leave
    grace_seconds: float  # then: for what is under way


def serve(package: Package, wanted: Wanted, settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; a second one does not wait.

    Raises:
        BackendError: a port is taken, or the runtime refuses the model.
    """
    with ExitStack() as opened:
        _allow_many_connections()
        listener = opened.enter_context(listen(settings.host, settings.http_port))
        loaded = load(package, "1", wanted)
        opened.callback(loaded.close)
        console.step(f"{package.prefix} in {loaded.described}")
        _run(_Server([loaded], wanted, settings).run(listener))


def _allow_many_connections() -> None:
    """Take as many open files as the system allows: each connection is one, and 1024 is a common limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS takes less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _run(serving: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:  # it does not come on every platform
        asyncio.run(serving)
    else:  # a seventh less of the interpreter's time for a request
        uvloop.run(serving)


class _Server:
    def __init__(self, loaded: list[Loaded], wanted: Wanted, settings: Settings) -> None:
        self._settings = settings
        # What waits, and what computes.
        max_requests = wanted.max_queue + wanted.batch * loaded[0].model.setup.streams
        self._room = Room(settings.max_body, max_requests, settings.patience)
        self._stop = asyncio.Event()
        self._plane = Plane()
        for each in loaded:
            self._plane.put(each.model)

    async def run(self, listener: socket.socket) -> None:
        """Serve until told to stop."""
        loop = asyncio.get_running_loop()
        http = make_http_server(rest.make_app(self._plane, self._room), self._room.patience)
        rpc, grpc_port = make_rpc_server(self._plane, self._room, self._settings.host, self._settings.grpc_port)
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._told_to_stop, http)
        try:
            await rpc.start()
            serving = asyncio.create_task(http.serve(sockets=[listener]))
            host, names = self._settings.host, ", ".join(self._plane.models)
            shown = f"[{host}]" if ":" in host else host
            console.step(f"serving {names}: http://{shown}:{listener.getsockname()[1]} and grpc://{shown}:{grpc_port}")
            await self._stop.wait()
            await self._end(http, rpc, serving)
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _told_to_stop(self, http: uvicorn.Server) -> None:
        if self._plane.stopping:
            http.force_exit = True
        self._plane.stopping = True
        self._stop.set()

    async def _end(self, http: uvicorn.Server, rpc: grpc.aio.Server, serving: asyncio.Task[None]) -> None:
        """Let clients leave, then refuse what is new, finish what is under way, and close the doors."""
        _say(f"stopping: clients have {self._settings.drain_seconds:g} s to leave")
        await self._wait(self._settings.drain_seconds, lambda: http.force_exit)
        # In words, on connections that are open: behind a closed door a client cannot tell what became of its request.
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
    """Say how the end goes on; whoever read the output may be gone by then, and the clients are not."""
    with contextlib.suppress(OSError):
        console.step(text)
