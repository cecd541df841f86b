"""Error responses over REST: a status, and one line."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from pipeline.serve.answers import refusal
from pipeline.serve.kserve import Internal, InvalidInput, ModelNotFound, ServerNotReady, Unavailable

_STATUS = {InvalidInput: 400, ModelNotFound: 404, Unavailable: 503, ServerNotReady: 503, Internal: 500, Exception: 500}


def answer_faults(app: FastAPI) -> None:
    """Register the handlers that turn exceptions into error responses in the protocol's form."""
    for fault, status in _STATUS.items():
        app.add_exception_handler(fault, _answering(status))
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _misparsed)


def _answering(status: int) -> Callable[[Request, Exception], Response]:
    def answer(_: Request, err: Exception) -> Response:
        if isinstance(err, Unavailable | Internal):
            return refusal(status, err.details)
        return refusal(status, "internal error" if status == 500 else str(err))

    return answer


def _refused(_: Request, err: Exception) -> Response:
    """Answer what the framework refuses: unknown paths, bodies too large, malformed forms."""
    assert isinstance(err, HTTPException)
    return refusal(err.status_code, str(err.detail), err.headers)


def _misparsed(_: Request, err: Exception) -> Response:
    assert isinstance(err, RequestValidationError)
    return refusal(400, "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in err.errors()))
