"""The REST side: the Open Inference Protocol v2 with its binary tensor extension, uploads, health and metrics."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serve import metrics
from pipeline.serve.kserve import (
    DataPlane,
    InferInput,
    InferRequest,
    Internal,
    InvalidInput,
    ModelMetadataResponse,
    ModelNotFound,
    RequestedOutput,
    ServerNotReady,
    Unavailable,
    V2Endpoints,
)
from pipeline.serve.model import PackageModel, refuse_shared_memory, whole_number
from pipeline.serve.unpacking import Unpacking

_JSON_LENGTH = "inference-header-content-length"  # of the binary tensor extension
_DTYPES = {"UINT8": np.uint8, "FP32": np.float32}
_STATUS = {InvalidInput: 400, ModelNotFound: 404, Unavailable: 503, ServerNotReady: 503, Internal: 500, Exception: 500}
_MOST_FILES = 128  # of one upload
_TOPK = 5


def make_app(
    plane: DataPlane, model: PackageModel, *, max_body: int, max_requests: int, stopping: Callable[[], bool]
) -> FastAPI:
    """Return the ASGI application.

    Args:
        max_body: bytes of a request.
        max_requests: requests that may be under way; more are answered with 503 before their body is read.
        stopping: says whether clients are to leave.
    """
    app = FastAPI(title="Open Inference Protocol v2", docs_url=None, redoc_url=None, openapi_url=None)
    health = V2Endpoints(plane)

    def check(model_name: str, model_version: str | None) -> None:
        if plane.model_registry.get_model(model_name) is None:
            raise ModelNotFound(model_name)
        model.check_version(model_version)

    async def metadata(model_name: str, model_version: str | None = None) -> object:
        check(model_name, model_version)
        return await health.model_metadata(model_name)

    async def ready(model_name: str, model_version: str | None = None) -> object:
        check(model_name, model_version)
        return await health.model_ready(model_name)

    async def infer(request: Request, model_name: str, model_version: str | None = None) -> Response:
        check(model_name, model_version)
        json_length = request.headers.get(_JSON_LENGTH)
        payload = parse(await request.body(), json_length, model_name)
        response, _ = await plane.infer(model_name, payload)
        content, head = response.to_rest()
        if head is None:
            return Response(orjson.dumps(content), media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={_JSON_LENGTH: str(head)})

    async def classify(
        request: Request, model_name: str, model_version: str | None = None, topk: int = _TOPK
    ) -> Response:
        check(model_name, model_version)
        if topk < 1:
            raise InvalidInput(f"topk: expected 1 or more, got {topk}")
        found = [each.as_dict() for each in await model.classify(await _uploads(request), topk)]
        return Response(orjson.dumps(found), media_type="application/json")

    async def show_metrics(request: Request) -> Response:
        generate, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(generate(REGISTRY), headers={"content-type": kind})

    probes = ["GET", "HEAD"]
    app.add_api_route("/v2", health.metadata, methods=probes)
    app.add_api_route("/v2/health/live", health.live, methods=probes)
    app.add_api_route("/v2/health/ready", health.ready, methods=probes)
    app.add_api_route("/v2/models", health.models, methods=probes)
    for of_model in ("/v2/models/{model_name}", "/v2/models/{model_name}/versions/{model_version}"):
        shown = {"response_model": ModelMetadataResponse, "response_model_exclude_none": True}
        app.add_api_route(of_model, metadata, methods=probes, **shown)
        app.add_api_route(f"{of_model}/ready", ready, methods=probes)
        app.add_api_route(f"{of_model}/infer", infer, methods=["POST"])
        app.add_api_route(f"{of_model}/classify", classify, methods=["POST"])
    app.add_api_route("/metrics", show_metrics, methods=probes)
    for fault, status in _STATUS.items():
        app.add_exception_handler(fault, _answering(status))
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _misparsed)
    app.add_middleware(Unpacking, max_body=max_body)
    app.add_middleware(_Limits, max_body=max_body, max_requests=max_requests, stopping=stopping)
    return app


def _answering(status: int) -> Callable[[Request, Exception], Response]:
    def answer(_: Request, err: Exception) -> Response:
        if isinstance(err, Unavailable | Internal):
            text = err.details
        else:
            text = "internal error" if status == 500 else str(err)
        retry = {"retry-after": "1"} if status == 503 else None
        return JSONResponse({"error": text}, status_code=status, headers=retry)

    return answer


def _refused(_: Request, err: Exception) -> Response:
    """Answer what the framework itself refuses: unknown paths, bodies too large, broken forms."""
    assert isinstance(err, HTTPException)
    return JSONResponse({"error": err.detail}, status_code=err.status_code, headers=err.headers)


def _misparsed(_: Request, err: Exception) -> Response:
    assert isinstance(err, RequestValidationError)
    faults = [f"{each['loc'][-1]}: {each['msg']}" for each in err.errors()]
    return JSONResponse({"error": "; ".join(faults)}, status_code=400)


def parse(body: bytes, json_length: str | None, model_name: str) -> InferRequest:
    """Read a request of the protocol, with tensors in JSON or as bytes behind it.

    Args:
        json_length: bytes of the JSON at the body's start; None: all of it.

    Raises:
        InvalidInput: it is none.
    """
    length = len(body) if json_length is None else _whole_number(json_length)
    if not 0 <= length <= len(body):
        raise InvalidInput(f"{_JSON_LENGTH}: expected 0 to {len(body)}, got {json_length!r}")
    try:
        document = orjson.loads(body[:length])
    except orjson.JSONDecodeError as err:
        raise InvalidInput(f"the body is no JSON ({err})") from None
    inputs = document.get("inputs") if isinstance(document, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise InvalidInput("expected a JSON object with 'inputs', a list of one tensor")
    given, raw = _input(inputs[0], memoryview(body)[length:])
    return InferRequest(
        model_name,
        [given],
        request_id="" if document.get("id") is None else _text(document, "id"),
        raw_inputs=None if raw is None else [raw],
        parameters=_object(document, "parameters"),
        request_outputs=_outputs(document.get("outputs")),
    )


def _input(tensor: dict[str, Any], behind: memoryview) -> tuple[InferInput, bytes | None]:
    """Return a tensor, and its bytes if it is not in the JSON."""
    name, datatype = _text(tensor, "name"), _text(tensor, "datatype")
    shape, parameters = _shape(name, tensor.get("shape")), _object(tensor, "parameters") or {}
    refuse_shared_memory(f"input {name!r}", parameters)
    size = parameters.get("binary_data_size")
    if whole_number(0 if size is None else size) != len(behind):
        raise InvalidInput(f"input {name!r}: binary_data_size: {len(behind)} bytes follow the JSON, got {size!r:.80}")
    given = InferInput(name, shape, datatype)
    if size is not None:
        return given, bytes(behind)
    given.set_data_from_numpy(_from_json(name, datatype, shape, tensor.get("data")))
    return given, None


def _shape(name: str, shape: object) -> list[int]:
    axes = [whole_number(axis) for axis in shape] if isinstance(shape, list) else [None]
    known = [axis for axis in axes if axis is not None and axis >= 0]
    if len(known) != len(axes):
        raise InvalidInput(f"input {name!r}: shape: expected a list of numbers, got {shape!r:.80}")
    return known


def _from_json(name: str, datatype: str, shape: list[int], data: object) -> np.ndarray[Any, Any]:
    """Return numbers, or files in base64, flat or nested."""
    if not isinstance(data, list):
        raise InvalidInput(f"input {name!r}: data: expected a list, got {type(data).__name__}")
    try:
        if datatype == "BYTES":
            return np.array([base64.b64decode(each, validate=True) for each in data], dtype=object).reshape(shape)
        if datatype not in _DTYPES:
            raise InvalidInput(f"input {name!r}: datatype: expected UINT8, FP32 or BYTES, got {datatype!r:.80}")
        values = np.array(data)
        is_whole = datatype != "UINT8" or values.dtype.kind != "f" or bool((values == np.rint(values)).all())
        if values.dtype.kind not in "iuf" or not is_whole:  # 217.0 will do for 217
            raise InvalidInput(f"input {name!r}: data: expected numbers of {datatype}")
        if datatype == "UINT8" and values.size and not 0 <= values.min() <= values.max() <= 255:
            raise InvalidInput(f"input {name!r}: data: expected 0 to 255, got {values.min()} to {values.max()}")
        return values.astype(_DTYPES[datatype]).reshape(shape)
    except (ValueError, TypeError, binascii.Error) as err:
        raise InvalidInput(f"input {name!r}: the data are not {datatype} {shape} ({err})") from None


def _outputs(asked: object) -> list[RequestedOutput] | None:
    if asked is None or asked == []:
        return None
    if not isinstance(asked, list) or not all(isinstance(each, dict) for each in asked):
        raise InvalidInput("outputs: expected a list of objects")
    return [RequestedOutput(_text(each, "name"), _object(each, "parameters")) for each in asked]


def _text(given: dict[str, Any], key: str) -> str:
    value = given.get(key)
    if not isinstance(value, str):
        raise InvalidInput(f"{key}: expected text, got {value!r:.80}")
    return value


def _object(given: dict[str, Any], key: str) -> dict[str, Any] | None:
    value = given.get(key)
    if value is not None and not isinstance(value, dict):
        raise InvalidInput(f"{key}: expected an object, got {value!r:.80}")
    return value


def _whole_number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else -1


async def _uploads(request: Request) -> list[tuple[str, bytes]]:
    """Return names and contents: the files of a form, or the body as one."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return [("image", await request.body())]
    async with request.form(max_files=_MOST_FILES, max_fields=_MOST_FILES) as form:
        files = [each for _, each in form.multi_items() if isinstance(each, UploadFile)]
        return [(each.filename or "image", await each.read()) for each in files]


class _Limits:
    """Bounds bodies and requests under way, and asks clients to leave while the server is stopping."""

    def __init__(self, app: ASGIApp, *, max_body: int, max_requests: int, stopping: Callable[[], bool]) -> None:
        self._app, self._max_body, self._max_requests, self._stopping = app, max_body, max_requests, stopping
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and self._stopping():
                # A connection that is closed between two requests may take one that is on its way with it.
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            await send(message)

        if scope["method"] != "POST":
            await self._app(scope, receive, sending)
            return
        if self._under_way >= self._max_requests:
            metrics.REFUSED.labels("too many requests").inc()
            await _answering(503)(Request(scope), Unavailable("too many requests; try again later"))(
                scope, receive, sending
            )
            return
        self._under_way += 1
        try:
            await self._app(scope, self._counted(receive), sending)
        finally:
            self._under_way -= 1

    def _counted(self, receive: Receive) -> Receive:
        left = self._max_body

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                metrics.REFUSED.labels("body too large").inc()
                raise HTTPException(413, f"the body has more than {self._max_body} bytes")
            return message

        return counted
