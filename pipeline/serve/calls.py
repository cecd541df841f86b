"""The two calls that clients make all the time, `infer` and `classify`, answered without the framework.

Its layers take a third of the interpreter's time for such a request.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import TypeAlias

import orjson
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.serve.faults import respond_to, respond_to_bug
from pipeline.serve.headers import find_header
from pipeline.serve.kserve import InvalidInput
from pipeline.serve.multipart import FormError, read_files
from pipeline.serve.requests import JSON_LENGTH, parse
from pipeline.serve.served import Plane

# A last slash does no harm, as the framework has it for other paths.
_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/(infer|classify)/?")
_MOST_FILES = 128  # of one upload
_TOPK = 5
_JSON = (b"content-type", b"application/json")
_JSON_LENGTH = JSON_LENGTH.encode()

_Content: TypeAlias = tuple[bytes, list[tuple[bytes, bytes]]]  # of a response, and its headers


class Calls:
    """Answers these calls, and leaves all other requests to the application."""

    def __init__(self, app: ASGIApp, *, plane: Plane) -> None:
        self._app, self._plane = app, plane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        name, version, call = found.groups()
        try:
            if scope["method"] != "POST":
                raise HTTPException(405, headers={"allow": "POST"})
            answer = self._infer if call == "infer" else self._classify
            content, headers = await answer(scope, receive, name, version)
        except ClientDisconnect:  # before its body was whole
            return
        except Exception as err:
            response = respond_to(err)
            if response is None:
                await respond_to_bug()(scope, receive, send)
                raise  # uvicorn logs it
            await response(scope, receive, send)
            return
        headers.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _infer(self, scope: Scope, receive: Receive, name: str, version: str | None) -> _Content:
        self._plane.find(name, version)  # an unknown model is an error before the body is read
        payload = parse(await _body(receive), find_header(scope, _JSON_LENGTH), name, version)
        answer = await self._plane.infer(name, payload)
        if payload.request_outputs:
            binary = [bool(each.binary_data) for each in payload.request_outputs]
        else:
            binary = [bool(payload.use_binary_outputs)] * len(answer.tensors)
        write = partial(answer.to_rest, binary)
        content, head = await asyncio.to_thread(write) if answer.is_large else write()
        if head is None:
            return content, [_JSON]
        return content, [(_JSON_LENGTH, b"%d" % head), (b"content-type", b"application/octet-stream")]

    async def _classify(self, scope: Scope, receive: Receive, name: str, version: str | None) -> _Content:
        self._plane.find(name, version)
        topk = QueryParams(scope["query_string"]).get("topk", str(_TOPK))
        if not (topk.isascii() and topk.isdigit() and len(topk) <= 9 and int(topk)):
            raise InvalidInput(f"topk: expected 1 or more, got {topk:.80}")
        files = await _uploads(scope, receive)
        # Looked up again: the package may have been replaced meanwhile.
        found = await self._plane.find(name, version).classify(files, int(topk))
        return orjson.dumps([each.as_dict() for each in found]), [_JSON]


async def _body(receive: Receive) -> bytes:
    """Return a request's body.

    Raises:
        ClientDisconnect: the client left before it was whole.
    """
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _uploads(scope: Scope, receive: Receive) -> list[tuple[str, bytes]]:
    """Return names and contents: the files of a form, or the body as one."""
    content_type, body = find_header(scope, b"content-type") or "", await _body(receive)
    if not content_type.lower().startswith("multipart/form-data"):
        return [("image", body)]
    try:
        files = read_files(body, content_type)
    except FormError as err:
        raise InvalidInput(str(err)) from None
    if not files:
        raise InvalidInput("the form has no files; a file is a part with a file name, as curl -F a=@cat.jpg sends it")
    if len(files) > _MOST_FILES:
        raise InvalidInput(f"the form has {len(files)} files; expected at most {_MOST_FILES}")
    return files
