"""Error responses over REST: a status, and one line."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from pipeline.serve.answers import refusal
from pipeline.serve.kserve import Internal, InvalidInput, ModelNotFound, ServerNotReady, Unavailable

_STATUS = {InvalidInput: 400, ModelNotFound: 404, Unavailable: 503, ServerNotReady: 503, Internal: 500}


def answer_faults(app: FastAPI) -> None:
    """Register the handlers that turn exceptions into error responses in the protocol's form."""
    for fault in (*_STATUS, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(fault, _answer)


def _answer(_: Request, err: Exception) -> Response:
    return respond_to(err) or respond_to_bug()


def respond_to(err: Exception) -> Response | None:
    """Return the response to a fault of the request, or of the server's state; None for a bug of our own."""
    if isinstance(err, HTTPException):  # unknown paths, bodies too large, malformed forms
        return refusal(err.status_code, str(err.detail), err.headers)
    if isinstance(err, RequestValidationError):
        return refusal(400, "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in err.errors()))
    for fault, status in _STATUS.items():
        if isinstance(err, fault):
            return refusal(status, err.details if isinstance(err, Unavailable | Internal) else str(err))
    return None


def respond_to_bug() -> Response:
    """Return the response to a request that met one; what it was belongs in the log."""
    return refusal(500, "internal error")
