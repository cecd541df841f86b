"""The server: opens the package, listens on both ports, and stops without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import uvicorn

from pipeline.errors import BackendError
from pipeline.host.hardware import available_cores
from pipeline.packages.choice import runtime_for
from pipeline.packages.package import Package
from pipeline.runtimes.base import Backend, Placement, Runtime
from pipeline.runtimes.opening import open_backend, place
from pipeline.serve import rest
from pipeline.serve.batching import Batcher
from pipeline.serve.kserve import (
    DataPlane,
    ExceptionToStatusInterceptor,
    InferenceServicer,
    ModelRepository,
    Unimplemented,
    add_GRPCInferenceServiceServicer_to_server,
)
from pipeline.serve.model import VERSION, PackageModel
from pipeline.terminal import console
from pipeline.version import NAME, version

_BACKLOG = 2048  # connections that wait to be accepted
_LAST_WORDS = 1  # s, for requests that were on their way to be refused, and for answers to be sent
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Settings:
    """How to serve."""

    runtime: Runtime
    batch: int  # images computed at once, at most
    instances: int  # batches computed at the same time
    host: str
    http_port: int  # 0: any that is free
    grpc_port: int
    max_body: int  # bytes of a request
    max_queue: int  # images that wait
    drain_seconds: float  # told to stop: still serving, while clients leave
    grace_seconds: float  # then: for what is under way


def serve(package: Package, settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; a second one does not wait.

    Raises:
        BackendError: a port is taken, or the runtime refuses the model.
    """
    placement = place(settings.instances, available_cores())
    with ExitStack() as opened:
        listener = opened.enter_context(_listen(settings.host, settings.http_port))
        full, single = opened.enter_context(_open(package, settings, placement))
        batcher = Batcher(full, single, settings.batch, settings.max_queue)
        opened.callback(batcher.close)
        model = PackageModel(package, batcher, full.input, full.output, available_cores())
        opened.callback(model.close)
        console.step(
            f"{package.prefix} in {full.name} {full.version}: batches of up to {settings.batch}, "
            f"{placement.streams} at a time on {placement.threads} cores"
        )
        _run(_Server(model, settings, placement).run(listener))


def _run(serving: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:  # it does not come on every platform
        asyncio.run(serving)
    else:  # a seventh less of the interpreter's time for a request
        uvloop.run(serving)


@contextlib.contextmanager
def _open(package: Package, settings: Settings, placement: Placement) -> Iterator[tuple[Backend, Backend]]:
    """Yield the model for full batches, and for single images."""
    runtime = runtime_for(package, settings.runtime)
    wide = package.has_wide_weights
    with ExitStack() as opened:
        full = opened.enter_context(
            open_backend(runtime, package.model, batch=settings.batch, placement=placement, wide_weights=wide)
        )
        if settings.batch == 1 or runtime is Runtime.ONNXRUNTIME:  # its sessions take any batch
            yield full, full
        else:
            single = open_backend(runtime, package.model, batch=1, placement=placement, wide_weights=wide)
            yield full, opened.enter_context(single)


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as err:
        raise BackendError(
            f"{host}, port {port}: cannot be listened on ({os.strerror(err.errno or 0)}); give another"
        ) from None
    with listener:
        yield listener


class _Plane(DataPlane):  # type: ignore[misc]
    """KServe's answers about the server itself, as this one is."""

    stopping = False

    def metadata(self) -> dict[str, Any]:
        """Return who this is, and which extensions of the protocol it has."""
        extensions = ["binary_tensor_data", "classification"]
        return {"name": NAME, "version": version(), "extensions": extensions}

    async def ready(self) -> bool:
        return not self.stopping

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        return {**await super().model_metadata(model_name), "versions": [VERSION]}


class _Servicer(InferenceServicer):  # type: ignore[misc]
    """KServe's answers over gRPC, which take any version of a model for the one there is."""

    def __init__(self, plane: DataPlane, repository: object, model: PackageModel) -> None:
        super().__init__(plane, repository)
        self._model = model

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name == self._model.name:
            self._model.check_version(request.version)
        return await super().ModelReady(request, context)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = await super().ModelMetadata(request, context)
        self._model.check_version(request.version)
        answer.versions.append(VERSION)
        return answer


class _NoRepository:
    """What KServe asks when a client wants to load or unload a model: nobody may."""

    async def load(self, model_name: str) -> None:
        raise Unimplemented("models are neither loaded nor unloaded by clients")

    unload = load


class _Uvicorn(uvicorn.Server):
    """Leaves signals to whom it runs in."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Server:
    def __init__(self, model: PackageModel, settings: Settings, placement: Placement) -> None:
        self._model, self._settings = model, settings
        # What waits, and what computes.
        self._max_requests = settings.max_queue + settings.batch * placement.streams
        self._stop = asyncio.Event()
        repository = ModelRepository()
        repository.update(model)
        self._plane = _Plane(repository)

    async def run(self, listener: socket.socket) -> None:
        """Serve until told to stop."""
        loop = asyncio.get_running_loop()
        http = self._http()
        rpc, grpc_port = self._grpc()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._told_to_stop, http)
        try:
            await rpc.start()
            serving = asyncio.create_task(http.serve(sockets=[listener]))
            host, name = self._settings.host, self._model.name
            shown = f"[{host}]" if ":" in host else host
            console.step(f"serving {name}: http://{shown}:{listener.getsockname()[1]} and grpc://{shown}:{grpc_port}")
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
        self._model.refuse()
        await self._wait(_LAST_WORDS, lambda: http.force_exit)
        await self._wait(self._settings.grace_seconds, lambda: http.force_exit or not self._model.under_way)
        http.should_exit = True
        await asyncio.gather(rpc.stop(0 if http.force_exit else _LAST_WORDS), serving)
        _say("stopped")

    async def _wait(self, seconds: float, until: Callable[[], bool]) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < deadline and not until():
            await asyncio.sleep(0.02)

    def _http(self) -> uvicorn.Server:
        app = rest.make_app(
            self._plane,
            self._model,
            max_body=self._settings.max_body,
            max_requests=self._max_requests,
            stopping=lambda: self._plane.stopping,
        )
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=_LAST_WORDS, lifespan="off"
        )
        return _Uvicorn(config)

    def _grpc(self) -> tuple[grpc.aio.Server, int]:
        rpc = grpc.aio.server(
            interceptors=(ExceptionToStatusInterceptor(),),
            options=[("grpc.max_receive_message_length", self._settings.max_body), ("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=self._max_requests,
        )
        add_GRPCInferenceServiceServicer_to_server(_Servicer(self._plane, _NoRepository(), self._model), rpc)
        host, port = self._settings.host, self._settings.grpc_port
        try:
            return rpc, rpc.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError:
            raise BackendError(f"{host}, port {port}: cannot be listened on; give another --grpc_port") from None


def _say(text: str) -> None:
    """Say how the end goes on; whoever read the output may be gone by then, and the clients are not."""
    with contextlib.suppress(OSError):
        console.step(text)
