"""The REST side: the Open Inference Protocol v2 with its binary tensor extension, uploads, health and metrics."""

from __future__ import annotations

from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.datastructures import UploadFile
from starlette.routing import Route
from starlette.types import ASGIApp

from pipeline.serve import paddle_serving, triton
from pipeline.serve.faults import answer_faults
from pipeline.serve.guard import Door, Guard
from pipeline.serve.kserve import InvalidInput, ModelMetadataResponse, V2Endpoints
from pipeline.serve.limits import Limits, Room
from pipeline.serve.page import show_page
from pipeline.serve.requests import JSON_LENGTH, parse
from pipeline.serve.served import Plane
from pipeline.serve.siblings import Siblings
from pipeline.serve.unpacking import Unpacking

_PROBES = ["GET", "HEAD"]
_MOST_FILES = 128  # of one upload
_TOPK = 5
_MODEL_PATHS = ("/v2/models/{model_name}", "/v2/models/{model_name}/versions/{model_version}")


def make_app(plane: Plane, room: Room, door: Door, siblings: Siblings, registry: CollectorRegistry) -> ASGIApp:
    """Return the ASGI application.

    Args:
        room: limits of bodies and requests under way.
        door: the admission check.
        siblings: the other workers.
        registry: what `/metrics` shows.
    """
    app = FastAPI(title="Open Inference Protocol v2", docs_url=None, redoc_url=None, openapi_url=None)
    asked = _Models(plane, siblings)
    app.router.routes.extend(_hot_routes(asked))
    app.include_router(_server_routes(plane, registry))
    app.include_router(_model_routes(plane, asked))
    app.include_router(paddle_serving.routes(plane))
    answer_faults(app)
    app.add_middleware(Unpacking, room=room)
    app.add_middleware(Limits, room=room, stopping=lambda: plane.stopping)
    return Guard(app, door=door)  # around everything, so that the framework's own responses are logged too


def _server_routes(plane: Plane, registry: CollectorRegistry) -> APIRouter:
    """Return the routes of the server as a whole."""
    router = APIRouter()
    health = V2Endpoints(plane)
    router.add_api_route("/", show_page, methods=_PROBES)
    router.add_api_route("/v2", health.metadata, methods=_PROBES)
    router.add_api_route("/v2/health/live", health.live, methods=_PROBES)
    router.add_api_route("/v2/health/ready", health.ready, methods=_PROBES)
    router.add_api_route("/v2/models", health.models, methods=_PROBES)
    router.add_api_route("/metrics", partial(_show_metrics, registry), methods=_PROBES)
    return router


def _hot_routes(asked: _Models) -> list[Route]:
    """Return the routes that clients call all the time, without FastAPI's part: a fifth of a request's time."""
    return [
        Route(f"{path}/{name}", endpoint, methods=["POST"])
        for path in _MODEL_PATHS
        for name, endpoint in (("infer", asked.infer), ("classify", asked.classify))
    ]


def _model_routes(plane: Plane, asked: _Models) -> APIRouter:
    """Return the other routes of a model: of its newest version, or of one that the path names."""
    router = APIRouter()
    router.add_api_route("/v2/models/stats", asked.statistics, methods=_PROBES)
    for path in _MODEL_PATHS:
        shown: dict[str, Any] = {"response_model": ModelMetadataResponse, "response_model_exclude_none": True}
        router.add_api_route(path, plane.model_metadata, methods=_PROBES, **shown)
        router.add_api_route(f"{path}/ready", asked.ready, methods=_PROBES)
        router.add_api_route(f"{path}/config", asked.configuration, methods=_PROBES)
        router.add_api_route(f"{path}/stats", asked.statistics, methods=_PROBES)
    return router


class _Models:
    """Answers requests for models."""

    def __init__(self, plane: Plane, siblings: Siblings) -> None:
        self._plane, self._siblings = plane, siblings

    async def ready(self, model_name: str, model_version: str | None = None) -> object:
        model = self._plane.find(model_name, model_version)
        return {"name": model.name, "ready": True}

    async def configuration(self, model_name: str, model_version: str | None = None) -> object:
        return triton.configuration(self._plane.find(model_name, model_version))

    async def statistics(self, model_name: str = "", model_version: str | None = None) -> object:
        return await triton.asked_statistics(self._plane, self._siblings, model_name, model_version)

    async def infer(self, request: Request) -> Response:
        name, version = request.path_params["model_name"], request.path_params.get("model_version")
        self._plane.find(name, version)  # an unknown model is an error before the body is read
        payload = parse(await request.body(), request.headers.get(JSON_LENGTH), name, version)
        response, _ = await self._plane.infer(name, payload)
        content, head = response.to_rest()
        if head is None:
            return Response(orjson.dumps(content), media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={JSON_LENGTH: str(head)})

    async def classify(self, request: Request) -> Response:
        name, version = request.path_params["model_name"], request.path_params.get("model_version")
        self._plane.find(name, version)
        topk = request.query_params.get("topk", str(_TOPK))
        if not (topk.isascii() and topk.isdigit() and len(topk) <= 9 and int(topk)):
            raise InvalidInput(f"topk: expected 1 or more, got {topk:.80}")
        files = await _uploads(request)
        # Looked up again: the package may have been replaced meanwhile.
        found = await self._plane.find(name, version).classify(files, int(topk))
        return Response(orjson.dumps([each.as_dict() for each in found]), media_type="application/json")


async def _show_metrics(registry: CollectorRegistry, request: Request) -> Response:
    generate, kind = choose_encoder(request.headers.get("accept", ""))
    return Response(generate(registry), headers={"content-type": kind})


async def _uploads(request: Request) -> list[tuple[str, bytes]]:
    """Return names and contents: the files of a form, or the body as one."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return [("image", await request.body())]
    async with request.form(max_files=_MOST_FILES, max_fields=_MOST_FILES) as form:
        files = [each for _, each in form.multi_items() if isinstance(each, UploadFile)]
        return [(each.filename or "image", await each.read()) for each in files]
