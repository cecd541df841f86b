"""Admission over REST and gRPC: tokens, limits of each client, and the access log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serve import metrics
from pipeline.serve.access import AccessLog, Visit
from pipeline.serve.answers import refusal
from pipeline.serve.clients import Clients, TooMuchError, network_of
from pipeline.serve.tokens import Tokens, UnauthorizedError
from pipeline.serve.tracing import Tracing

# Open to everybody: probes have no token, and the page holds nothing that needs protection.
_OPEN = {"/", "/v2/health/live", "/v2/health/ready", "ServerLive", "ServerReady", "Check"}
_METRICS = "/metrics"
_NOTHING = nullcontext()  # which costs a fifth of a generator; most servers neither log nor trace


@dataclass
class Admission:
    """The checks that every request passes."""

    tokens: Tokens | None
    clients: Clients
    log: AccessLog | None
    open_metrics: bool = False
    tracing: Tracing | None = None

    def is_open(self, path: str) -> bool:
        """Tell whether a path, or a method of gRPC, answers without a token and without limits."""
        return path in _OPEN or (self.open_metrics and path == _METRICS)

    @property
    def reads_headers(self) -> bool:
        """Whether a request's headers matter here."""
        return self.tokens is not None or self.tracing is not None

    @property
    def reads_addresses(self) -> bool:
        """Whether it matters here from where a request comes."""
        return self.reads_headers or self.log is not None or self.clients.limited

    def logged(self, visit: Visit, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        """Log a visit when it ends, and trace it unless it is a probe."""
        if self.log is None and self.tracing is None:
            return _NOTHING
        return self._logged(visit, headers)

    def admitted(self, visit: Visit, authorization: str | None) -> AbstractContextManager[None]:
        """Admit a request for the duration of the body.

        Raises:
            UnauthorizedError, TooMuchError: it is not admitted; at the body's start.
        """
        if self.is_open(visit.path) or (self.tokens is None and not self.clients.limited):
            return _NOTHING
        return self._admitted(visit, authorization)

    @contextmanager
    def _logged(self, visit: Visit, headers: Mapping[str, str]) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            if self.tracing is None or visit.path in _OPEN or visit.path == _METRICS:
                yield
            else:
                with self.tracing.request(visit, headers):
                    yield
        finally:
            if self.log is not None:
                self.log.write(visit, time.perf_counter() - begun)

    @contextmanager
    def _admitted(self, visit: Visit, authorization: str | None) -> Iterator[None]:
        try:
            visit.name = self.tokens.owner(authorization) if self.tokens is not None else None
        except UnauthorizedError:
            metrics.REFUSED.labels("unauthorized").inc()
            raise
        client = f"token {visit.name}" if visit.name else network_of(visit.address)
        try:
            self.clients.enter(client)
        except TooMuchError:
            metrics.REFUSED.labels("client's share").inc()
            raise
        try:
            yield
        finally:
            self.clients.leave(client, visit.bytes_in)


class Guard:
    """The admission check of REST: a layer around the application."""

    def __init__(self, app: ASGIApp, *, admission: Admission) -> None:
        self._app, self._admission = app, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        address = scope["client"][0] if scope.get("client") else ""
        visit = Visit("http", scope["method"], scope["path"], address)

        async def receiving() -> Message:
            message = await receive()
            visit.bytes_in += len(message.get("body", b""))
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
            visit.bytes_out += len(message.get("body", b""))
            await send(message)

        headers: Mapping[str, str] = Headers(scope=scope) if self._admission.reads_headers else {}
        with self._admission.logged(visit, headers):
            try:
                with self._admission.admitted(visit, headers.get("authorization")):
                    await self._app(scope, receiving, sending)
            except UnauthorizedError as err:
                await refusal(401, str(err), {"www-authenticate": "Bearer"})(scope, receiving, sending)
            except TooMuchError as err:
                await refusal(429, f"{err}; try again later")(scope, receiving, sending)
