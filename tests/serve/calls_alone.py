"""The calls that bypass the framework: which requests they are, and how faults are answered.

test_calls.py runs these tests in a process of their own, since they import KServe.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from pipeline.serve.calls import Calls
from pipeline.serve.served import Plane

Sent = list[dict[str, Any]]


def ask(app: Any, method: str, path: str, body: bytes = b"", sent: Sent | None = None) -> Sent:
    """Return what an ASGI application sends; also in `sent`, where it raises."""
    sent = [] if sent is None else sent

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(
        app({"type": "http", "method": method, "path": path, "query_string": b"", "headers": []}, receive, send)
    )
    return sent


def answered(sent: Sent) -> tuple[int, Any]:
    return sent[0]["status"], json.loads(sent[1]["body"])


async def other(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b'"other"'})


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v2/models/net",
        "/v2/models/net/ready",
        "/v2/models/net/infer//",
        "/v2/models//infer",
        "/v2/models/a/b/infer",
        "/v2/models/net/versions/1/2/infer",
        "/v1/v2/models/net/infer",
    ],
)
def test_other_paths_are_left_to_the_application(path: str) -> None:
    assert answered(ask(Calls(other, plane=Plane()), "POST", path)) == (299, "other")


@pytest.mark.parametrize(
    "path", ["/v2/models/net/infer", "/v2/models/net/infer/", "/v2/models/net/versions/7/classify"]
)
def test_a_model_that_is_not_served_is_not_found_before_the_body_is_read(path: str) -> None:
    status, answer = answered(ask(Calls(other, plane=Plane()), "POST", path, b"no request"))
    assert status == 404
    assert "net" in answer["error"]


def test_other_methods_are_told_which_one_there_is() -> None:
    sent = ask(Calls(other, plane=Plane()), "GET", "/v2/models/net/infer")
    assert answered(sent) == (405, {"error": "Method Not Allowed"})
    assert (b"allow", b"POST") in sent[0]["headers"]


class Broken(Plane):
    def find(self, name: str, wanted: str | None) -> Any:
        raise ZeroDivisionError


def test_a_bug_is_answered_in_a_line_and_reaches_the_log() -> None:
    sent: Sent = []
    with pytest.raises(ZeroDivisionError):  # which uvicorn logs
        ask(Calls(other, plane=Broken()), "POST", "/v2/models/net/infer", sent=sent)
    assert answered(sent) == (500, {"error": "internal error"})
