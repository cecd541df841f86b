"""Limits of REST requests: the size of their bodies, how slowly they arrive, and how many at once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serve import metrics
from pipeline.serve.answers import refusal
from pipeline.serve.headers import find_header

LEAST_RATE = 256 * 1024  # bytes/s of a body, in addition to the seconds that every client has
_LEAVING = 32  # calls over gRPC that are counted as waiting while their answer is sent, at most
_BODIES = 16  # of the largest size: what all requests under way may hold together


Received = TypeVar("Received")


class FullError(Exception):
    """As many requests are under way as may be. Its text is for the client."""


@dataclass
class Capacity:
    """The limits, and what all requests share."""

    max_body: int  # bytes of a body, packed and unpacked
    max_requests: int  # under way; more are refused before their body is read
    patience: float  # s for a request's head, and for its body, which has more time the larger it is
    requests: int = 0
    held: int = 0  # bytes of the bodies of requests under way
    # Returns the calls over gRPC that wait to be taken up; takes from how many on that has to be exact.
    waiting: Callable[[int], int] = lambda most: 0

    @property
    def max_held(self) -> int:
        return _BODIES * self.max_body

    def taken(self) -> Taken:
        """Return a context manager that counts one request while the body runs.

        Raises:
            FullError: at the body's start; as many are under way as may be, with those that wait to be taken up.
        """
        return Taken(self)

    def take(self) -> None:
        """Count one request, which ends when whoever calls it takes it off `requests`; raise as `taken`."""
        free = self.max_requests - self.requests
        if free <= 0 or self.waiting(free + _LEAVING) >= free + _LEAVING:
            metrics.REFUSED.labels("too many requests").inc()
            raise FullError("too many requests; try again later")
        self.requests += 1

    def hold(self, count: int) -> None:
        """Count bytes that have arrived; whoever calls it takes them off `held` when the request ends.

        Raises:
            FullError: all bodies together are too large. The bytes are counted all the same.
        """
        self.held += count
        if self.held > self.max_held:
            metrics.REFUSED.labels("bodies too large").inc()
            raise FullError("too many bytes under way; try again later")

    def holding(self, count: int) -> Holding:
        """Return a context manager that holds bytes while the body runs; raises as `hold` at its start."""
        return Holding(self, count)


class Taken:
    """The place of one request. Every request has one: a generator would take three times as long."""

    __slots__ = ("_capacity",)

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity

    def __enter__(self) -> None:
        self._capacity.take()

    def __exit__(self, *_: object) -> None:
        self._capacity.requests -= 1


class Holding:
    """The bytes of one request."""

    __slots__ = ("_capacity", "_count")

    def __init__(self, capacity: Capacity, count: int) -> None:
        self._capacity, self._count = capacity, count

    def __enter__(self) -> None:
        try:
            self._capacity.hold(self._count)
        except FullError:
            self._capacity.held -= self._count
            raise

    def __exit__(self, *_: object) -> None:
        self._capacity.held -= self._count


async def receive_by(until: float, receiving: Awaitable[Received]) -> Received:
    """Return what arrives before a moment of the event loop's clock.

    Raises:
        asyncio.TimeoutError: it does not arrive.
    """
    if sys.version_info >= (3, 11):  # wait_for makes a task there, for each part of a body
        async with asyncio.timeout_at(until):
            return await receiving
    return await asyncio.wait_for(receiving, max(until - asyncio.get_running_loop().time(), 0.001))


class Limits:
    """Limits bodies and requests under way, and asks clients to leave while the server is stopping."""

    def __init__(self, app: ASGIApp, *, capacity: Capacity, stopping: Callable[[], bool]) -> None:
        self._app, self._capacity, self._stopping = app, capacity, stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and self._stopping():
                # Closing a connection between two requests may lose one that is already on its way.
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            await send(message)

        if scope["method"] != "POST":
            await self._app(scope, receive, sending)
            return
        if int(find_header(scope, b"content-length") or 0) > self._capacity.max_body:
            await self._refuse_large(scope, receive, sending)
            return
        body = _Body(self._capacity, receive)
        try:
            with self._capacity.taken():
                await self._app(scope, body.receive, sending)
        except FullError as err:
            await refusal(503, str(err))(scope, receive, sending)
        finally:
            self._capacity.held -= body.size

    async def _refuse_large(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that says itself that it is too large, before a client that asked is told to send it."""
        err = _too_large(self._capacity)
        await refusal(err.status_code, str(err.detail))(scope, receive, send)


def _too_large(capacity: Capacity) -> HTTPException:
    """Count a body beyond the limit, and return its refusal."""
    metrics.REFUSED.labels("body too large").inc()
    return HTTPException(413, f"the body has more than {capacity.max_body} bytes")


class _Body:
    """The body of one request, counted as it arrives."""

    def __init__(self, capacity: Capacity, receive: Receive) -> None:
        self._capacity, self._receive = capacity, receive
        self._begun = asyncio.get_running_loop().time()
        self._whole = False
        self.size = 0

    async def receive(self) -> Message:
        """Return the next message.

        Raises:
            HTTPException: 413, it is too large; 408, it arrives too slowly; 503, all bodies together are too large.
        """
        if self._whole:  # the next message is the client's disconnect
            return await self._receive()
        until = self._begun + self._capacity.patience + self.size / LEAST_RATE
        try:
            message = await receive_by(until, self._receive())
        except asyncio.TimeoutError:
            metrics.REFUSED.labels("body too slow").inc()
            raise HTTPException(
                408, f"the body came too slowly: {self.size} bytes in {self._capacity.patience:g} s"
            ) from None
        count = len(message.get("body", b""))
        self.size += count
        self._whole = not message.get("more_body", False)
        try:
            self._capacity.hold(count)
        except FullError as err:
            raise HTTPException(503, str(err)) from None
        if self.size > self._capacity.max_body:
            raise _too_large(self._capacity)
        return message
