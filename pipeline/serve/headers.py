"""Headers of REST requests, without an object of the framework for each."""

from __future__ import annotations

from starlette.types import Scope


def find_header(scope: Scope, name: bytes) -> str | None:
    """Return the first value of a header; None where there is none.

    Args:
        name: in lower case, as ASGI has all names.
    """
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None
