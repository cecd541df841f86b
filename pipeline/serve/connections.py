"""HTTP connections: uvicorn's, with limits on request heads and slow clients, and without HTTP/2 upgrades."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import httptools
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from pipeline.serve.answers import refusal

_MOST_HEAD = 64 * 1024  # bytes of a request's head, and of anything that is neither head nor body
_UNDER_WAY = "pipeline.under_way"  # of the extensions of a request's scope
_STATUS = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


@dataclass
class _UnderWay:
    """The requests of one connection that are being answered."""

    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    left: bool = False

    def leave(self) -> None:
        """Stop answering: the client has left."""
        self.left = True
        for task in self.tasks:
            task.cancel()


class UntilClientLeaves:
    """A layer around an application that is cancelled when its client leaves, as gRPC does with calls.

    So images are not computed for clients that gave up and may ask again. One that closes a plain connection may have
    closed its half of it only, so that it has left when the connection is reset; over TLS, when it is closed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        under_way: _UnderWay | None = scope.get("extensions", {}).get(_UNDER_WAY)
        task = asyncio.current_task()
        if under_way is None or task is None:
            await self._app(scope, receive, send)
            return
        under_way.tasks.add(task)
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            # The client has left, and without a response uvicorn would report a fault of ours; or the server stops and
            # the request did not come in time.
            await refusal(499 if under_way.left else 503, "the server is stopping")(scope, receive, send)
        finally:
            under_way.tasks.discard(task)


class _HeadWithBody(asyncio.Transport):
    """Where a response is written to: its head goes out with the first part of its body.

    One system call, and the client wakes up once. uvicorn writes them one after the other, and uvloop at once.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        """Stand before the transport of a request that has just begun."""
        super().__init__()
        self._transport, self._cycle = cycle.transport, cycle
        self._head: bytes | None = None
        self._begun = False

    def write(self, data: Any) -> None:
        if self._transport.is_closing():  # the client has left; uvicorn tells only the newest of its requests
            self._head = None
        elif not self._begun and self._cycle.response_started:  # else it is `100 Continue`
            self._head, self._begun = data, True
        elif self._head is not None:
            self._transport.writelines([self._head, data])
            self._head = None
        else:
            self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        if self._head is not None:
            self._transport.write(self._head)
            self._head = None
        self._transport.close()


class Connection(HttpToolsProtocol):
    """A connection of HTTP/1.1.

    A request's head must arrive within some seconds, so must the rest of a body that is not read any more, and answers
    must be taken in that time: uvicorn waits for ever. A client that closes its half of the connection still gets its
    answer. A client that offers HTTP/2 (`curl --http2`: `Upgrade: h2c`) is answered over HTTP/1.1, as RFC 9110 (7.8)
    allows: uvicorn with httptools would lose the body.
    """

    def __init__(self, *args: Any, patience: float, **kwargs: Any) -> None:
        """Prepare the connection.

        Args:
            patience: s for a request's head, for what is left of an unread body, and until a full buffer of answers (64
                KiB) has been taken by the client.
        """
        super().__init__(*args, **kwargs)
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None  # runs while answers wait for the client to take them
        self._head_size = self._silent = 0  # bytes of lines and headers, and bytes since the parser's last callback
        self._offers_upgrade = False
        self._under_way = _UnderWay()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_waiting_for_reader()
        super().connection_lost(exc)
        self._under_way.leave()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection for the answer that is under way; over TLS that is not possible."""
        if self.scheme == "https" or self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            return False
        self.cycle.keep_alive = False
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_waiting_for_reader()
        self._writing = self.loop.call_later(self._patience, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_waiting_for_reader()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._silent += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as err:
            self._go_on_without_upgrade(data[err.args[0] :])
        except httptools.HttpParserError:
            if self._head_size > _MOST_HEAD:
                self._refuse(431)
            else:
                self.send_400_response("Invalid HTTP request received.")
        else:
            if self._silent > _MOST_HEAD:
                self._refuse(431)

    def on_message_begin(self) -> None:
        self._head_size = self._silent = 0
        self._offers_upgrade = False
        super().on_message_begin()
        if self._timer is None:
            self._start_timer()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._silent = 0
        if self.parser.get_method() == b"CONNECT":
            raise ValueError("this is no proxy")  # httptools makes it an invalid request
        self._offers_upgrade = self.parser.should_upgrade()
        if not self._offers_upgrade:
            self._stop_timer()
            cast(Any, self.scope)["extensions"] = {_UNDER_WAY: self._under_way}
            super().on_headers_complete()
            if self.scope["method"] != "HEAD":  # whose responses have no body to wait for
                self.cycle.transport = _HeadWithBody(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._silent = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._silent = 0
        if not self._offers_upgrade:
            if self.cycle.response_complete:
                self._stop_timer()  # the rest of a body that was not read
            super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.cycle is not None and self.cycle.more_body and not self.pipeline:
            self._start_timer()
        super().on_response_complete()

    def _count_head(self, count: int) -> None:
        self._silent = 0
        self._head_size += count
        if self._head_size > _MOST_HEAD:
            raise ValueError("the head is too large")  # httptools makes it an invalid request

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Read the request again as one that does not offer another protocol. httptools takes no body for it."""
        kept = [(name, value) for name, value in self.headers if name not in (b"upgrade", b"http2-settings")]
        line = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        head = line + b"".join(b"%s: %s\r\n" % header for header in kept) + b"\r\n"
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(head + rest)

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self._patience, self._timed_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_waiting_for_reader(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _timed_out(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self.cycle is None:
            self._refuse(408)
        elif self.cycle.response_complete:
            self.transport.close()
        else:  # the head of a further request is slow while an answer is under way
            self._start_timer()

    def _refuse(self, status: int) -> None:
        if not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                text = _STATUS[status]
                self.transport.write(
                    b"HTTP/1.1 %d %s\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % (status, text)
                )
            self.transport.close()
