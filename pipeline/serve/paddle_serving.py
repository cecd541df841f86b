"""Requests as clients of Paddle Serving send them: images in base64 to `/NAME/prediction`.

Source: PaddleClas's deploy/paddleserving (pipeline_http_client.py and classification_web_service.py).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from pipeline.run.prediction import Prediction
from pipeline.serve.kserve import InvalidInput
from pipeline.serve.model import PackageModel
from pipeline.serve.served import Plane

_WANTED = 'expected {"key": ["image", ...], "value": [BASE64, ...]}'


def routes(plane: Plane) -> APIRouter:
    """Return the route of predictions."""
    router = APIRouter()

    async def predict(request: Request, name: str) -> Response:
        model = _find(plane, name)
        files = await asyncio.to_thread(read_images, await request.body())  # tens of MB of base64 take a while
        found = await model.classify(files, topk=1)
        return Response(orjson.dumps(answer_of(found)), media_type="application/json")

    router.add_api_route("/{name}/prediction", predict, methods=["POST"])
    return router


def _find(plane: Plane, name: str) -> PackageModel:
    """Return the model of a name; where one alone is served, its own, as their services have names of their own."""
    known = plane.models
    return plane.find(next(iter(known)) if len(known) == 1 else name, None)


def read_images(body: bytes) -> list[tuple[str, bytes]]:
    """Return the names and contents of the image files in a request.

    Raises:
        InvalidInput: it is not of the form that Paddle Serving takes.
    """
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as err:
        raise InvalidInput(f"{_WANTED}, got no JSON: {err}") from None
    keys, values = (content.get(part) if isinstance(content, dict) else None for part in ("key", "value"))
    if not isinstance(keys, list) or not isinstance(values, list) or not keys or len(keys) != len(values):
        raise InvalidInput(_WANTED)
    return [(str(key), _decode(key, value)) for key, value in zip(keys, values, strict=True)]


def _decode(key: object, value: object) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else b"?", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"value of {key!s:.80}: expected an image file in base64") from None


def answer_of(found: list[Prediction]) -> dict[str, Any]:
    """Return what PaddleClas's service answers: the best class of each image, as text of Python lists."""
    labels = [prediction.labels[0].strip().replace(",", "") for prediction in found]
    return {
        "err_no": 0,
        "err_msg": "",
        "key": ["label", "prob"],
        "value": [str(labels), str([prediction.scores[0] for prediction in found])],
        "tensors": [],
    }
