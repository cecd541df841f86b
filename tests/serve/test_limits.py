"""What all requests share: how many are under way, and the bytes of their bodies."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="serve's packages are not installed: pip install '.[serve]'")
from starlette.exceptions import HTTPException

from pipeline.serve.limits import Capacity, FullError, Limits
from pipeline.serve.unpacking import Unpacking

Message = dict[str, Any]


def ask(app: Any, *parts: bytes, **headers: str) -> tuple[int, Any]:
    """Send a body in parts to an ASGI application; return the answer's status and JSON."""
    waiting = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)} for number, part in enumerate(parts, 1)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    fields = [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": fields}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def app_of(capacity: Capacity, seen: list[int]) -> Limits:
    """Return the limits around an application that reads the body, and notes the bytes that are held meanwhile."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        size, more = 0, True
        status, text = 200, "read"
        try:
            while more:
                message = await receive()
                size, more = size + len(message["body"]), message["more_body"]
            seen.append(capacity.held)
        except HTTPException as err:
            status, text = err.status_code, err.detail
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(text).encode()})

    return Limits(Unpacking(application, capacity=capacity), capacity=capacity, stopping=lambda: False)


def test_bodies_are_held_while_they_are_under_way() -> None:
    seen: list[int] = []
    capacity = Capacity(max_body=100, max_requests=1, patience=1.0)
    assert ask(app_of(capacity, seen), b"a" * 30, b"b" * 40) == (200, "read")
    assert ask(app_of(capacity, seen), gzip.compress(b"a" * 90), content_encoding="gzip") == (200, "read")
    assert seen == [70, 90 + len(gzip.compress(b"a" * 90))]
    assert (capacity.held, capacity.requests) == (0, 0)


@pytest.mark.parametrize("packed", [False, True])
def test_bodies_are_refused_when_all_together_are_too_large(packed: bool) -> None:
    capacity = Capacity(max_body=100, max_requests=1, patience=1.0)
    capacity.held = 1600 - 50  # of 16 times the largest
    content = gzip.compress(b"a" * 60) if packed else b"a" * 60
    status, answer = ask(app_of(capacity, []), content, **({"content_encoding": "gzip"} if packed else {}))
    assert status == 503
    assert "too many bytes under way" in str(answer)
    assert (capacity.held, capacity.requests) == (1550, 0)


def test_a_body_that_is_too_large_is_not_held_any_more() -> None:
    capacity = Capacity(max_body=100, max_requests=1, patience=1.0)
    assert ask(app_of(capacity, []), b"a" * 60, b"a" * 60) == (413, "the body has more than 100 bytes")
    assert (capacity.held, capacity.requests) == (0, 0)


def test_requests_are_refused_when_as_many_are_under_way_as_may_be() -> None:
    capacity = Capacity(max_body=100, max_requests=1, patience=1.0)
    with capacity.taken():
        assert ask(app_of(capacity, []), b"a") == (503, {"error": "too many requests; try again later"})
        with pytest.raises(FullError), capacity.taken():
            pass
    assert ask(app_of(capacity, []), b"a") == (200, "read")
