"""The admission check of gRPC: calls are admitted before their message is read, and messages must arrive in time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any
from urllib.parse import quote, unquote

import grpc
from google.protobuf.message import DecodeError

from pipeline.serve import metrics
from pipeline.serve.access import Visit
from pipeline.serve.backlog import Backlog
from pipeline.serve.clients import TooMuchError
from pipeline.serve.guard import Admission
from pipeline.serve.kserve import ExceptionToStatusInterceptor
from pipeline.serve.limits import LEAST_RATE, Capacity, FullError
from pipeline.serve.patience import Patience
from pipeline.serve.tokens import UnauthorizedError

_Code = grpc.StatusCode
_Handler = Any  # grpc has no types

# Bytes of an error's text as it is sent. From 8 KiB of trailers on, gRPC's clients report RESOURCE_EXHAUSTED by chance
# in place of the error, and from 16 KiB on always; an error may quote a name out of the request.
_LONGEST_TEXT = 4096
_STATUSES = ExceptionToStatusInterceptor()  # knows the statuses of KServe's exceptions
_SENT_AS_IS = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class RpcGuard(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """The service's methods, with a check of every call.

    A call with one message is read here as a stream of messages, so that it can be refused before its message, of up to
    `--max_body`, has arrived, and ended where the message does not arrive. Handlers are made once: interceptors, which
    are asked for each call, take as long as reading the request.
    """

    def __init__(
        self, methods: Mapping[str, _Handler], admission: Admission, capacity: Capacity, backlog: Backlog
    ) -> None:
        """Prepare to answer.

        Args:
            methods: handlers of one message and one answer, by the path of the method.
        """
        self._admission, self._capacity, self._backlog = admission, capacity, backlog
        # How much of a message has arrived is not known here, so every one has the time of the largest.
        self._patience = Patience(capacity.patience + capacity.max_body / LEAST_RATE)
        self._handlers = {path: self._guarded(path.rpartition("/")[2], each) for path, each in methods.items()}

    def service(self, details: Any) -> _Handler | None:
        """Return the handler of a call; None for an unknown method."""
        return self._handlers.get(details.method)

    def _guarded(self, method: str, handler: _Handler) -> _Handler:
        is_open = self._admission.is_open(method)

        async def guarded(_: object, context: Any) -> Any:
            address = _address(context.peer()) if self._admission.reads_addresses else ""
            visit = Visit("grpc", "POST", method, address)
            headers = dict(context.invocation_metadata() or ()) if self._admission.reads_headers else {}
            with self._backlog, self._admission.logged(visit, headers):
                try:
                    taken = nullcontext() if is_open else self._capacity.taken()
                    with self._admission.admitted(visit, headers.get("authorization")), taken:
                        message = await self._message(context)
                        visit.bytes_in = len(message)
                        with self._capacity.holding(visit.bytes_in):
                            answer = await self._answer(handler, message, context, method)
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

        return grpc.stream_unary_rpc_method_handler(guarded, response_serializer=handler.response_serializer)

    async def _answer(self, handler: _Handler, message: bytes, context: Any, method: str) -> Any:
        """Return a method's answer; end the call with a status where it raises."""
        request: Any = message
        try:
            if handler.request_deserializer is not None:
                request = handler.request_deserializer(message)
            return await handler.unary_unary(request, context)
        except DecodeError:
            await context.abort(_Code.INVALID_ARGUMENT, f"the message is no {method}Request")
        except Exception as err:
            await _STATUSES.handle_exception(err, request, _Brief(context), method)
        raise AssertionError  # both raise

    async def _message(self, context: Any) -> bytes:
        """Return a call's message."""
        try:
            message: bytes = await self._patience.wait_for(context.read())
        except asyncio.TimeoutError:
            metrics.REFUSED.labels("body too slow").inc()
            text = f"the message did not come in {self._patience.seconds:g} s"
            await context.abort(_Code.DEADLINE_EXCEEDED, text)
        if message is grpc.aio.EOF:
            await context.abort(_Code.INVALID_ARGUMENT, "expected one message, got none")
        return message


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
