"""Request bodies that a client compressed, unpacked before anything reads them."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serve import metrics
from pipeline.serve.answers import refusal
from pipeline.serve.headers import find_header
from pipeline.serve.limits import Capacity, FullError

_GZIP = 16 + zlib.MAX_WBITS  # tells zlib to expect gzip's header and checksum
_PIECE = 64 * 1024  # bytes given to zlib at once: what is left of them is copied where a stream ends
_MOST_STREAMS = 10_000  # that follow one another; bgzip and pigz write one for each 64 or 128 KiB
_ENCODINGS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": zlib.MAX_WBITS}


class Unpacking:
    """Gives the application the unpacked body of a request with `content-encoding`."""

    def __init__(self, app: ASGIApp, *, capacity: Capacity) -> None:
        self._app, self._capacity = app, capacity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoding = (find_header(scope, b"content-encoding") or "") if scope["type"] == "http" else ""
        if encoding.strip().lower() in ("", "identity"):
            await self._app(scope, receive, send)
            return
        try:
            packed = await _body(receive)
            # In a thread: tens of MB take a tenth of a second.
            body = await asyncio.to_thread(unpack, packed, encoding.strip().lower(), self._capacity.max_body)
        except HTTPException as err:
            await refusal(err.status_code, str(err.detail), err.headers)(scope, receive, send)
            return
        scope = {**scope, "headers": list(scope["headers"])}
        headers = MutableHeaders(scope=scope)
        del headers["content-encoding"]
        headers["content-length"] = str(len(body))
        waiting = iter([{"type": "http.request", "body": body, "more_body": False}])
        try:
            with self._capacity.holding(len(body)):
                await self._app(scope, _first(waiting, receive), send)
        except FullError as err:
            await refusal(503, str(err))(scope, receive, send)


def _first(messages: Iterator[Message], receive: Receive) -> Receive:
    """Return a `receive` that first returns `messages`, then the results of `receive`."""

    async def receiving() -> Message:
        message = next(messages, None)
        return await receive() if message is None else message

    return receiving


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def unpack(packed: bytes, encoding: str, max_body: int) -> bytes:
    """Return the decompressed bytes.

    Args:
        encoding: the value of `content-encoding`, in lower case.
        max_body: bytes that it may unpack to.

    Raises:
        HTTPException: 415, an unknown encoding; 413, more bytes than `max_body`; 400, damaged, or of very many streams.
    """
    if encoding not in _ENCODINGS:
        known = "gzip, deflate"
        raise HTTPException(
            415, f"content-encoding: expected {known} or none, got {encoding!r:.80}", {"accept-encoding": known}
        )
    unpacked, at = bytearray(), 0
    try:
        for _ in range(_MOST_STREAMS + 1):  # gzip files may follow one another
            if at == len(packed):
                return bytes(unpacked)
            at = _unpack_stream(packed, at, encoding, unpacked, max_body)
    except zlib.error as err:
        raise HTTPException(400, f"content-encoding: the body is no {encoding} data ({err})") from None
    raise HTTPException(400, f"content-encoding: more than {_MOST_STREAMS} streams of {encoding} follow one another")


def _unpack_stream(packed: bytes, at: int, encoding: str, unpacked: bytearray, max_body: int) -> int:
    """Add what the stream at a place unpacks to; return the place behind it. Raises as `unpack`, or zlib.error."""
    window = _ENCODINGS[encoding]
    if encoding == "deflate" and not _has_zlib_header(packed[at : at + 2]):  # some clients leave it out
        window = -zlib.MAX_WBITS
    stream = zlib.decompressobj(window)
    while at < len(packed):
        piece = packed[at : at + _PIECE]
        while piece:
            unpacked += stream.decompress(piece, max_body + 1 - len(unpacked))
            if len(unpacked) > max_body:
                metrics.REFUSED.labels("body too large").inc()
                raise HTTPException(413, f"the unpacked body has more than {max_body} bytes")
            piece = stream.unconsumed_tail
        at += _PIECE
        if stream.eof:
            return min(at, len(packed)) - len(stream.unused_data)
    raise HTTPException(400, f"content-encoding: the body is not whole {encoding} data")


def _has_zlib_header(content: bytes) -> bool:
    return len(content) > 1 and content[0] & 0x0F == 8 and int.from_bytes(content[:2], "big") % 31 == 0
