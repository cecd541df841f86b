"""What Ray reads from the environment: that nothing leaves the machine, and the token of a cluster."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ENVIRONMENT = {  # read when Ray is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # of the nodes' messages, which Ray prints among the results
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a late thread starts a new Ray after ours has ended
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns about future versions of Ray
}
_MODE, _TOKEN, _TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def _has_token() -> bool:
    """Tell whether Ray would find a token here: in the environment, or in a file."""
    path = os.environ.get(_TOKEN_PATH) or Path("~/.ray/auth_token").expanduser()
    return bool(os.environ.get(_TOKEN)) or Path(path).is_file()


def token_settings(address: str | None) -> dict[str, str]:
    """Return what must be in the environment for Ray's authentication by token; nothing where the user chose a mode.

    Args:
        address: of the cluster to join; None: a Ray of the run's own.

    A Ray that is started by `ray.init` (2.60) makes a token, and leaves it in ~/.ray/auth_token: from then on, each
    `ray start --head` wants it. So a Ray of our own gets a token in the environment, which ends with the run.
    `ray start --head` reads that file without being told, but `ray.init` uses it only where the mode is set; and where
    the mode is set, but the cluster wants no token, joining succeeds and all work is lost.
    """
    if _MODE in os.environ:
        return {}
    if address is None:
        return {_MODE: "token"} if os.environ.get(_TOKEN) else {_MODE: "token", _TOKEN: secrets.token_hex(32)}
    return {_MODE: "token"} if _has_token() and _wants_token(address) else {}


_TRY_TO_JOIN = """
import logging, sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
"""
_TRY_S = 60.0


def _wants_token(address: str) -> bool:
    """Tell whether nobody can join a cluster without a token; tried in a process of its own, since Ray looks once."""
    environment = {**os.environ, **ENVIRONMENT, _MODE: "disabled"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRY_TO_JOIN, address],
            env=environment,
            capture_output=True,
            check=False,
            timeout=_TRY_S,
        )
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def note() -> str:
    where = f"~/.ray/auth_token, or {_TOKEN}"
    if _has_token():
        return f"If the cluster wants a token, the one here ({where}) must be that of its head"
    return f"If the cluster wants a token, copy that of its head to here ({where})"


@contextlib.contextmanager
def added_to_environment(settings: dict[str, str]) -> Iterator[None]:
    """Set variables that are not set, for the body."""
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            os.environ.pop(name, None)
