"""The two calls that clients make all the time, `infer` and `classify`, answered without the framework.

Its layers take a third of the interpreter's time for such a request.
"""

from __future__ import annotations

import re

import orjson
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.serve.faults import respond_to, respond_to_bug
from pipeline.serve.kserve import InvalidInput
from pipeline.serve.requests import JSON_LENGTH, parse
from pipeline.serve.served import Plane

_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/(infer|classify)")
_MOST_FILES = 128  # of one upload
_TOPK = 5


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
            response = await answer(Request(scope, receive), name, version)
        except ClientDisconnect:  # before its body was whole
            return
        except Exception as err:
            known = respond_to(err)
            if known is None:
                await respond_to_bug()(scope, receive, send)
                raise  # uvicorn logs it
            response = known
        await response(scope, receive, send)

    async def _infer(self, request: Request, name: str, version: str | None) -> Response:
        self._plane.find(name, version)  # an unknown model is an error before the body is read
        payload = parse(await request.body(), request.headers.get(JSON_LENGTH), name, version)
        answer = await self._plane.infer(name, payload)
        if payload.request_outputs:
            binary = [bool(each.binary_data) for each in payload.request_outputs]
        else:
            binary = [bool(payload.use_binary_outputs)] * len(answer.tensors)
        content, head = answer.to_rest(binary)
        if head is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={JSON_LENGTH: str(head)})

    async def _classify(self, request: Request, name: str, version: str | None) -> Response:
        self._plane.find(name, version)
        topk = request.query_params.get("topk", str(_TOPK))
        if not (topk.isascii() and topk.isdigit() and len(topk) <= 9 and int(topk)):
            raise InvalidInput(f"topk: expected 1 or more, got {topk:.80}")
        files = await _uploads(request)
        # Looked up again: the package may have been replaced meanwhile.
        found = await self._plane.find(name, version).classify(files, int(topk))
        return Response(orjson.dumps([each.as_dict() for each in found]), media_type="application/json")


async def _uploads(request: Request) -> list[tuple[str, bytes]]:
    """Return names and contents: the files of a form, or the body as one."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return [("image", await request.body())]
    try:
        async with request.form(max_files=_MOST_FILES, max_fields=_MOST_FILES) as form:
            files = [each for _, each in form.multi_items() if isinstance(each, UploadFile)]
            return [(each.filename or "image", await each.read()) for each in files]
    except MultiPartException as err:
        raise InvalidInput(err.message) from None
