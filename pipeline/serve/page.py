"""The page at `/`: a picture in, the best classes out. It loads nothing else, and holds nothing that a token keeps."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path

from fastapi.responses import HTMLResponse, Response

_FILE = Path(__file__).with_name("page.html")


async def show_page() -> Response:
    text, policy = _read()
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return HTMLResponse(text, headers=headers)


@lru_cache(maxsize=1)
def _read() -> tuple[str, str]:
    """Return the page, and the policy that has the browser run its own script and talk to this server only."""
    text = _FILE.read_text(encoding="utf-8")
    script, style = (_digests(text, tag) for tag in ("script", "style"))
    # Widths of bars are styles of elements.
    allowed = f"script-src {script}; style-src-elem {style}; style-src-attr 'unsafe-inline'"
    return text, (
        f"default-src 'none'; {allowed}; connect-src 'self'; img-src blob: data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _digests(text: str, tag: str) -> str:
    contents = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in contents]
    return " ".join(f"'sha256-{digest}'" for digest in digests)
