"""Clients that cost little: they send bytes that were made before, over plain sockets, and read whole answers.

They run on the same cores as the server that is measured, and clients in Python of gRPC or HTTP would take several
times as much of these.
"""

from __future__ import annotations

import asyncio
import re
import struct
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import unquote

from pipeline.errors import PipelineError


class RefusedError(Exception):
    """The server does not take the request, and says so."""


class Http:
    """One connection of HTTP/1.1, on which requests follow one another."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> bytes:
        """Return the body of the answer."""
        if self._streams is not None and self._streams[0].at_eof():  # the server ends idle connections
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
        assert length is not None, head
        body = await reader.readexactly(int(length[1]))
        if re.search(rb"\r\nconnection: close\r\n", head, re.IGNORECASE):  # as a server says that stops
            self.close()
        if not head.startswith(b"HTTP/1.1 200"):
            raise RefusedError(body.decode()) if b"stopping" in body else PipelineError(body.decode())
        return body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


# HTTP/2 (RFC 9113): kinds of frames, flags, settings.
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GO_AWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM = _ACK = 1
_END_HEADERS = 4
_TABLE_SIZE, _PUSH, _INITIAL_WINDOW, _MAX_FRAME = 1, 2, 4, 5
_MOST = 2**31 - 1  # bytes of a window
_WINDOW = 65535  # at first
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass
class _Call:
    """One call that is under way on a connection."""

    answered: asyncio.Future[bytes]
    left: memoryview  # of the message, what is not sent yet
    window: int  # bytes that the server takes of it
    received: list[bytes] = field(default_factory=list)


class Rpc(asyncio.Protocol):
    """One connection of HTTP/2, with calls of one method of gRPC, many at a time."""

    def __init__(self, address: str, path: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._head = b"\x83\x86" + b"".join(  # POST, http
            (b"\x04" if name == ":path" else b"\x01" if name == ":authority" else b"\0" + _text(name)) + _text(value)
            for name, value in (
                (":path", path),
                (":authority", address),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
            )
        )
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Future[object] | None = None
        self._is_over = False  # the server takes no more calls on this connection
        self._calls: dict[int, _Call] = {}
        self._next, self._buffer = 1, b""
        self._window, self._window_of_calls, self._largest = _WINDOW, _WINDOW, 16384
        self._taken = 0  # bytes of answers since the server was told that it may send more

    async def ask(self, message: bytes) -> bytes:
        """Return the message that answers one. It is sent as it is: `prefixed`.

        Raises:
            RefusedError: the server is stopping, or gone.
            PipelineError: it answers with an error.
        """
        if self._transport is None:
            await self._connect()
        if self._is_over:
            raise RefusedError("the server has ended the connection")
        assert self._transport is not None
        call = _Call(asyncio.get_running_loop().create_future(), memoryview(message), self._window_of_calls)
        number, self._next = self._next, self._next + 2
        self._calls[number] = call
        self._transport.write(_frame(_HEADERS, _END_HEADERS, number, self._head))
        self._send(number, call)
        return await call.answered

    async def _connect(self) -> None:
        if self._connecting is None:
            loop = asyncio.get_running_loop()
            self._connecting = asyncio.ensure_future(loop.create_connection(lambda: self, self._host, self._port))
        try:
            await self._connecting
        except OSError as err:
            raise RefusedError(f"connection refused: {err}") from None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's are none by type
        # Without a table the headers of answers are literals.
        chosen = ((_TABLE_SIZE, 0), (_PUSH, 0), (_INITIAL_WINDOW, _MOST))
        settings = b"".join(struct.pack(">HI", *each) for each in chosen)
        more = struct.pack(">I", _MOST - _WINDOW)
        transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, more))

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_over = True
        for call in self._calls.values():
            if not call.answered.done():
                call.answered.set_exception(PipelineError(f"the connection ended: {exc}"))
        self._calls.clear()

    def data_received(self, data: bytes) -> None:
        content, at = self._buffer + data if self._buffer else data, 0
        while len(content) - at >= 9:
            size, end = int.from_bytes(content[at : at + 3], "big"), at + 9
            if len(content) < end + size:
                break
            number = int.from_bytes(content[at + 5 : end], "big") & _MOST
            self._take(content[at + 3], content[at + 4], number, content[end : end + size])
            at = end + size
        self._buffer = content[at:]

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Handle one frame."""
        assert self._transport is not None
        call = self._calls.get(number)
        if kind == _DATA and call is not None:
            call.received.append(payload)
            self._taken += len(payload)
            if self._taken > _MOST // 2:
                self._transport.write(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._taken)))
                self._taken = 0
        elif kind == _HEADERS and flags & _END_STREAM and call is not None:
            del self._calls[number]
            _answer(call, read_headers(payload))
        elif kind == _RESET and call is not None:
            del self._calls[number]
            call.answered.set_exception(PipelineError("the server reset the call"))
        elif kind == _GO_AWAY:
            self._refuse_behind(int.from_bytes(payload[:4], "big") & _MOST)
        elif kind == _WINDOW_UPDATE:
            self._widen(number, int.from_bytes(payload, "big"))
        elif kind == _SETTINGS and not flags & _ACK:
            self._settle(payload)
        elif kind == _PING and not flags & _ACK:
            self._transport.write(_frame(_PING, _ACK, 0, payload))

    def _refuse_behind(self, last: int) -> None:
        """End the calls that the server does not take up: those behind the last one that it names."""
        self._is_over = True
        for number in [number for number in self._calls if number > last]:
            answered = self._calls.pop(number).answered
            if not answered.done():
                answered.set_exception(RefusedError("the server is stopping"))

    def _settle(self, payload: bytes) -> None:
        """Obey the server's settings."""
        assert self._transport is not None
        for key, value in struct.iter_unpack(">HI", payload):
            if key == _MAX_FRAME:
                self._largest = value
            elif key == _INITIAL_WINDOW:
                for call in self._calls.values():
                    call.window += value - self._window_of_calls
                self._window_of_calls = value
        self._transport.write(_frame(_SETTINGS, _ACK, 0, b""))
        self._go_on()

    def _widen(self, number: int, more: int) -> None:
        """Send what the server takes now, of one call or of all."""
        if number == 0:
            self._window += more
            self._go_on()
        elif number in self._calls:
            self._calls[number].window += more
            self._send(number, self._calls[number])

    def _go_on(self) -> None:
        for number, call in self._calls.items():
            self._send(number, call)

    def _send(self, number: int, call: _Call) -> None:
        """Send as much of a message as the server takes."""
        assert self._transport is not None
        parts: list[bytes | memoryview] = []
        while call.left and (size := min(len(call.left), call.window, self._window, self._largest)) > 0:
            flags = _END_STREAM if size == len(call.left) else 0
            parts += (_frame_head(size, _DATA, flags, number), call.left[:size])
            call.left = call.left[size:]
            call.window -= size
            self._window -= size
        if parts:
            self._transport.writelines(parts)


def prefixed(message: bytes) -> bytes:
    """Return a message as it is sent: not compressed, with its size before it."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _answer(call: _Call, trailers: dict[str, str]) -> None:
    if call.answered.done():  # nobody waits any more
        return
    status, text = trailers.get("grpc-status"), unquote(trailers.get("grpc-message", ""))
    if status == "0":
        call.answered.set_result(b"".join(call.received)[5:])
    elif "stopping" in text:
        call.answered.set_exception(RefusedError(text))
    else:
        call.answered.set_exception(PipelineError(f"status {status}: {text}"))


def read_headers(block: bytes) -> dict[str, str]:
    """Return the headers of a block of HPACK (RFC 7541) that are literals without Huffman's code, as gRPC writes them.

    Raises:
        ValueError: it has others.
    """
    found, at = {}, 0
    while at < len(block):
        first = block[at]
        if first & 0xE0 == 0x20:  # the table's size
            _, at = _number(block, at, 5)
        elif first & 0x80:  # of the static table, as `:status: 200`
            _, at = _number(block, at, 7)
        else:
            index, at = _number(block, at, 6 if first & 0x40 else 4)
            name, at = (str(index), at) if index else _string(block, at)
            found[name], at = _string(block, at)
    return found


def _string(block: bytes, at: int) -> tuple[str, int]:
    if block[at] & 0x80:
        raise ValueError("a header in Huffman's code")
    size, at = _number(block, at, 7)
    return block[at : at + size].decode("latin-1"), at + size


def _number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """Return the number at a place, in the last bits of a byte or behind it, and the place after it."""
    most = (1 << bits) - 1
    number = block[at] & most
    at += 1
    if number < most:
        return number, at
    shift = 0
    while True:
        number += (block[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not block[at - 1] & 0x80:
            return number, at


def _text(text: str) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return _frame_head(len(payload), kind, flags, number) + payload


def _frame_head(size: int, kind: int, flags: int, number: int) -> bytes:
    return struct.pack(">BHBBI", size >> 16, size & 0xFFFF, kind, flags, number)
