"""What one client may take: requests under way, requests a second, bytes a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_MOST_CLIENTS = 10_000  # remembered at most; beyond, the least recently active ones are forgotten
_BURST_S = 2.0  # a client that was idle may use the allowance of so many seconds at once


class TooMuchError(Exception):
    """A client exceeds its limits. The text is for the client."""


@dataclass(frozen=True)
class Shares:
    """Of each client; 0: no limit."""

    requests: int = 0  # under way
    per_second: float = 0.0  # requests
    bytes_per_second: int = 0  # of bodies


class _Client:
    def __init__(self, shares: Shares, now: float) -> None:
        self.under_way = 0
        # Allowances grow with time up to a burst. Bytes are deducted after they arrived, so theirs may fall below zero.
        self.requests = max(1.0, shares.per_second * _BURST_S)
        self.bytes = shares.bytes_per_second * _BURST_S
        self.seen = now


class Clients:
    """All clients, by name: the name of its token, or its address. Called by the event loop only."""

    def __init__(self, shares: Shares, clock: Callable[[], float] = time.monotonic) -> None:
        self._shares, self._clock = shares, clock
        self._known: dict[str, _Client] = {}

    def enter(self, name: str) -> None:
        """Count a request; `leave` ends it.

        Raises:
            TooMuchError: the client exceeds its limits; the request is not counted.
        """
        client, shares = self._find(name), self._shares
        if shares.requests and client.under_way >= shares.requests:
            raise TooMuchError(f"more than {shares.requests} requests of one client under way")
        if shares.per_second and client.requests < 1:
            raise TooMuchError(f"more than {shares.per_second:g} requests a second of one client")
        if shares.bytes_per_second and client.bytes <= 0:
            raise TooMuchError(f"more than {shares.bytes_per_second} bytes a second of one client")
        client.requests -= 1
        client.under_way += 1

    def leave(self, name: str, size: int) -> None:
        """End a request whose body had `size` bytes."""
        client = self._find(name)
        client.under_way -= 1
        client.bytes -= size

    def _find(self, name: str) -> _Client:
        now, shares = self._clock(), self._shares
        client = self._known.pop(name, None) or _Client(shares, now)
        self._known[name] = client  # at the end: clients are ordered by their last requests
        passed, client.seen = now - client.seen, now
        client.requests = min(max(1.0, shares.per_second * _BURST_S), client.requests + passed * shares.per_second)
        most = shares.bytes_per_second * _BURST_S
        client.bytes = min(most, client.bytes + passed * shares.bytes_per_second)
        if len(self._known) > _MOST_CLIENTS:
            self._forget()
        return client

    def _forget(self) -> None:
        idle = (name for name, client in self._known.items() if not client.under_way)
        del self._known[next(idle)]


def network_of(address: str) -> str:
    """Return the name of a client without a token: its address, or the /64 network of an IPv6 address."""
    if ":" not in address or "." in address:
        return address
    import ipaddress

    try:
        return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
    except ValueError:
        return address
