"""REST responses to requests that are not admitted."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.responses import JSONResponse, Response

_TRY_AGAIN = (429, 503)


def refusal(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error response of one line in the protocol's form."""
    retry = {"retry-after": "1"} if status in _TRY_AGAIN else {}
    return JSONResponse({"error": text}, status_code=status, headers={**retry, **(headers or {})})
