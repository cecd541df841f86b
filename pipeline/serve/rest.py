"""The REST side: the Open Inference Protocol v2 with its binary tensor extension, uploads, health and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from pipeline.serve import paddle_serving, triton
from pipeline.serve.calls import Calls
from pipeline.serve.connections import UntilClientLeaves
from pipeline.serve.faults import answer_faults
from pipeline.serve.guard import Admission, Guard
from pipeline.serve.kserve import ModelMetadataResponse, V2Endpoints
from pipeline.serve.limits import Capacity, Limits
from pipeline.serve.page import show_page
from pipeline.serve.served import Plane
from pipeline.serve.siblings import Siblings
from pipeline.serve.unpacking import Unpacking

_PROBES = ["GET", "HEAD"]
_MODEL_PATHS = ("/v2/models/{model_name}", "/v2/models/{model_name}/versions/{model_version}")
_READABLE = "inference-header-content-length"  # by scripts of other origins, beside what every script may read


def make_app(
    plane: Plane,
    capacity: Capacity,
    admission: Admission,
    siblings: Siblings,
    registry: CollectorRegistry,
    origins: Sequence[str] = (),
) -> ASGIApp:
    """Return the ASGI application.

    Args:
        capacity: limits of bodies and requests under way.
        admission: the admission check.
        siblings: the other workers.
        registry: what `/metrics` shows.
        origins: of pages in browsers that may read answers; `*`: any.
    """
    app = FastAPI(title="Open Inference Protocol v2", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(_server_routes(plane, registry))
    app.include_router(_model_routes(plane, _Models(plane, siblings)))
    app.include_router(paddle_serving.routes(plane))
    answer_faults(app)
    unpacked = Unpacking(Calls(app, plane=plane), capacity=capacity)
    limited = Limits(unpacked, capacity=capacity, stopping=lambda: plane.stopping)
    # Around everything, so that the framework's own responses are logged too.
    guarded = UntilClientLeaves(Guard(limited, admission=admission))
    if not origins:
        return guarded
    # Around that: browsers ask whether they may call without a token.
    return CORSMiddleware(
        guarded,
        allow_origins=origins,
        allow_methods=["GET", "HEAD", "POST"],
        allow_headers=["*"],
        expose_headers=[_READABLE],
    )


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


async def _show_metrics(registry: CollectorRegistry, request: Request) -> Response:
    generate, kind = choose_encoder(request.headers.get("accept", ""))
    return Response(generate(registry), headers={"content-type": kind})
