"""Calls over gRPC that have arrived and wait until the event loop takes them up."""

from __future__ import annotations

import json
import time
from typing import Any

from grpc._cython import cygrpc

_FRESH_S = 0.1  # how long a count is used
_FRESH_WHEN_FULL_S = 0.01  # and one that requests are refused for
_A_DAY_S = 24 * 3600
_LEAST_STREAMS = 1024  # of a connection
_CONNECTIONS = 4  # full ones, whose calls may wait; a call takes some 30 KB


def leave_refusing(max_requests: int) -> list[tuple[str, int]]:
    """Return channel arguments of a server that leaves refusing calls to `Backlog`.

    gRPC itself ends a call as CANCELLED, which says nothing of load, when it was not taken up for 30 s or when 1000 to
    3000 calls wait. A busy event loop takes calls up one by one, behind everything else that it does.

    Args:
        max_requests: under way, of all clients.
    """
    streams = max(_LEAST_STREAMS, 2 * max_requests)
    return [
        ("grpc.enable_channelz", 1),
        ("grpc.max_concurrent_streams", streams),  # a client keeps back what is more
        ("grpc.server_max_unrequested_time_in_server", _A_DAY_S),
        ("grpc.server.max_pending_requests", _CONNECTIONS * streams),
        ("grpc.server.max_pending_requests_hard_limit", _CONNECTIONS * streams),
    ]


class Backlog:
    """Counts them for one server of this process. Called by the event loop only.

    As a context manager it counts a call as taken up while the body runs.
    """

    def __init__(self) -> None:
        """Begin before the server is made."""
        self._first = max(_servers(0), default=0) + 1
        self._number: int | None = None  # of the server
        self._arrived, self._counted_at = 0, float("-inf")  # calls that have arrived and have no answer yet
        self._taken_up = 0  # those of them that are being answered

    def __enter__(self) -> None:
        self._taken_up += 1

    def __exit__(self, *_: object) -> None:
        self._taken_up -= 1
        if self._arrived:
            self._arrived -= 1

    def waiting(self, most: int) -> int:
        """Return how many wait, those included whose answer is being sent.

        Args:
            most: so many, or more, are counted anew before they are returned; fewer may be those of .1 s ago.
        """
        age = time.monotonic() - self._counted_at
        if age > _FRESH_S or (age > _FRESH_WHEN_FULL_S and self._now() >= most):
            self._arrived, self._counted_at = self._count(), time.monotonic()
        return self._now()

    def _now(self) -> int:
        return max(0, self._arrived - self._taken_up)

    def _count(self) -> int:
        if self._number is None:
            self._number = min(_servers(self._first), default=None)
        if self._number is None:
            return 0
        found = _ask("channelz_get_server", self._number).get("server", {}).get("data", {})
        started, *ended = (int(found.get(name, 0)) for name in ("callsStarted", "callsSucceeded", "callsFailed"))
        return started - sum(ended)


def _servers(first: int) -> list[int]:
    """Return the numbers of this process's servers, from one on."""
    return [int(each["ref"]["serverId"]) for each in _ask("channelz_get_servers", first).get("server", [])]


def _ask(function: str, number: int) -> dict[str, Any]:
    """Return what channelz says; nothing where this release of gRPC does not know the function or the number."""
    try:
        found: dict[str, Any] = json.loads(getattr(cygrpc, function)(number))
    except (AttributeError, ValueError):  # then no call counts as waiting; tests/contracts notices
        return {}
    return found
