"""The admission check of gRPC: calls are admitted before their message is read, and messages must arrive in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from typing import Any
from urllib.parse import quote, unquote

import grpc

from pipeline.serve import metrics
from pipeline.serve.access import Visit
from pipeline.serve.backlog import Backlog
from pipeline.serve.clients import TooMuchError
from pipeline.serve.guard import Door
from pipeline.serve.kserve import ExceptionToStatusInterceptor
from pipeline.serve.limits import LEAST_RATE, FullError, Room, receive_by
from pipeline.serve.tokens import UnauthorizedError

_Code = grpc.StatusCode
_Handler = Any  # grpc has no types

# Bytes of an error's text as it is sent. From 8 KiB of trailers on, gRPC's clients report RESOURCE_EXHAUSTED by chance
# in place of the error, and from 16 KiB on always; an error may quote a name out of the request.
_LONGEST_TEXT = 4096
_SENT_AS_IS = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class RpcGuard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Checks every call.

    A call with one message is read here as a stream of messages, so that it can be refused before its message, of up to
    `--max_body`, has arrived, and ended where the message does not arrive.
    """

    def __init__(self, door: Door, room: Room, backlog: Backlog) -> None:
        self._door, self._room, self._backlog = door, room, backlog

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[_Handler]], details: Any) -> _Handler:
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        headers = dict(details.invocation_metadata or ())
        method = details.method.rpartition("/")[2]

        async def guarded(requests: AsyncIterator[tuple[int, Any]], context: Any) -> Any:
            visit = Visit("grpc", "POST", method, _address(context.peer()))
            with self._backlog.taken_up(), self._door.logged(visit, headers):
                try:
                    taken = nullcontext() if self._door.is_open(method) else self._room.taken()
                    with self._door.admitted(visit, headers.get("authorization")), taken:
                        visit.bytes_in, request = await self._message(requests, context)
                        with self._room.holding(visit.bytes_in):
                            answer = await handler.unary_unary(request, context)
                        visit.status = "OK"
                        return answer
                except UnauthorizedError as err:
                    await context.abort(_Code.UNAUTHENTICATED, str(err))
                except FullError as err:
                    await context.abort(_Code.RESOURCE_EXHAUSTED, str(err))
                except TooMuchError as err:
                    await context.abort(_Code.RESOURCE_EXHAUSTED, f"{err}; try again later")
                finally:
                    code = context.code()
                    if isinstance(code, _Code) and visit.status == 0:
                        visit.status = code.name

        def serialize(answer: Any) -> bytes:
            made: bytes = handler.response_serializer(answer)
            return made

        return grpc.stream_unary_rpc_method_handler(
            guarded,
            request_deserializer=lambda raw: (len(raw), handler.request_deserializer(raw)),
            response_serializer=serialize,
        )

    async def _message(self, requests: AsyncIterator[tuple[int, Any]], context: Any) -> tuple[int, Any]:
        """Return the bytes of a call's message, and the parsed message."""
        # How much of it has arrived is not known here, so every message has the time of the largest.
        seconds = self._room.patience + self._room.max_body / LEAST_RATE
        try:
            return await receive_by(asyncio.get_running_loop().time() + seconds, requests.__anext__())
        except asyncio.TimeoutError:
            metrics.REFUSED.labels("body too slow").inc()
            await context.abort(_Code.DEADLINE_EXCEEDED, f"the message did not come in {seconds:g} s")
        except StopAsyncIteration:
            await context.abort(_Code.INVALID_ARGUMENT, "expected one message, got none")
        raise AssertionError  # abort raises


class Statuses(ExceptionToStatusInterceptor):  # type: ignore[misc]  # KServe has no types
    """Turns exceptions into statuses, whose text has a length that clients take."""

    async def handle_exception(self, ex: Exception, request: Any, context: Any, method_name: str) -> None:
        await super().handle_exception(ex, request, _Brief(context), method_name)


class _Brief:
    """A call's context that shortens the text of an error."""

    def __init__(self, context: Any) -> None:
        self._context = context

    async def abort(self, code: Any, text: str) -> None:
        await self._context.abort(code, shorten(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def shorten(text: str) -> str:
    """Return a text, or its start and "..." where gRPC would send more than 4096 bytes of it."""
    size = [len(quote(each, safe=_SENT_AS_IS)) for each in text[: _LONGEST_TEXT + 1]]  # a character is a byte or more
    if sum(size) <= _LONGEST_TEXT:
        return text
    kept, left = 0, _LONGEST_TEXT - len("...")
    while size[kept] <= left:
        left -= size[kept]
        kept += 1
    return text[:kept] + "..."


def _address(peer: str) -> str:
    """Return the address of `ipv4:127.0.0.1:4711` or `ipv6:[::1]:4711`, as gRPC has it."""
    _, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]")
