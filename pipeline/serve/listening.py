"""The two servers: uvicorn on a socket, and gRPC on a port."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Iterator
from typing import Any, cast

import grpc
import uvicorn
from starlette.types import ASGIApp

from pipeline.errors import BackendError
from pipeline.serve.backlog import Backlog, leave_refusing
from pipeline.serve.connections import Connection
from pipeline.serve.guard import Admission
from pipeline.serve.limits import Capacity
from pipeline.serve.rpc import make_methods
from pipeline.serve.rpc_guard import RpcGuard
from pipeline.serve.served import Plane
from pipeline.serve.siblings import Siblings
from pipeline.serve.tls import Certificates

LAST_RESPONSES_S = 1  # s, for error responses to requests that were on their way, and for answers to be sent
_IDLE_S = 75  # for a further request on a connection: longer than the 60 s for which proxies and balancers keep theirs
_MOST_METADATA = 64 * 1024  # bytes of a call's headers


class HttpServer(uvicorn.Server):
    """Leaves signals to its caller, and gives clients so long for TLS's handshake as for the head of a request."""

    def __init__(self, config: uvicorn.Config, patience: float) -> None:
        super().__init__(config)
        self._patience = patience

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on sockets. uvicorn's own leaves the minute that asyncio gives for a handshake."""
        loop, config = asyncio.get_running_loop(), self.config
        protocol = functools.partial(cast(Any, config.http_protocol_class), config, self.server_state, {})
        seconds = self._patience if config.ssl is not None else None
        self.servers = [
            await loop.create_server(
                protocol, sock=each, ssl=config.ssl, backlog=config.backlog, ssl_handshake_timeout=seconds
            )
            for each in sockets or []
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_http_server(app: ASGIApp, patience: float, certificates: Certificates | None) -> HttpServer:
    """Return the server of an application.

    Args:
        patience: s for the head of a request, and for TLS's handshake.
        certificates: None: without TLS.
    """
    config = uvicorn.Config(
        app,
        http=cast(Any, functools.partial(Connection, patience=patience)),
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # else any client on this machine could claim another address
        timeout_graceful_shutdown=LAST_RESPONSES_S,
        timeout_keep_alive=_IDLE_S,
        lifespan="off",
    )
    config.load()
    config.ssl = certificates.context if certificates is not None else None
    return HttpServer(config, patience)


def make_rpc_server(
    plane: Plane,
    capacity: Capacity,
    admission: Admission,
    siblings: Siblings,
    address: tuple[str, int],
    certificates: Certificates | None,
    *,
    shared: bool = False,
) -> tuple[grpc.aio.Server, int]:
    """Return the server, and its port.

    Args:
        shared: whether other processes may listen on the port as well.

    Raises:
        BackendError: the port is taken, or the address is not of this machine.
    """
    calls = Backlog()
    capacity.waiting = calls.waiting
    rpc = grpc.aio.server(
        options=[
            *leave_refusing(capacity.max_requests),
            ("grpc.max_receive_message_length", capacity.max_body),
            ("grpc.max_metadata_size", _MOST_METADATA),
            ("grpc.server_handshake_timeout_ms", round(capacity.patience * 1000)),
            ("grpc.so_reuseport", int(shared)),
        ],
    )
    rpc.add_generic_rpc_handlers((RpcGuard(make_methods(plane, siblings), admission, capacity, calls),))
    host, port = address
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if certificates is None:
            return rpc, rpc.add_insecure_port(where)
        return rpc, rpc.add_secure_port(where, certificates.rpc_credentials())
    except RuntimeError:
        raise BackendError(f"{host}, port {port}: cannot be listened on; give another --grpc_port") from None
