"""What one client may take: requests under way, requests a second, bytes a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

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

    @property
    def limited(self) -> bool:
        return bool(self.requests or self.per_second or self.bytes_per_second)


@dataclass
class Account:
    """What one client has taken and may still take."""

    under_way: int
    # Allowances grow with time up to a burst. Bytes are deducted after they arrived, so theirs may fall below zero.
    requests: float
    bytes: float
    seen: float  # by the clock


class Store(Protocol):
    """Where accounts are kept."""

    def account(self, name: str, new: Account) -> AbstractContextManager[Account]:
        """Yield the account of a client, or `new` for an unknown one; changes are kept."""


class OwnStore:
    """Keeps the accounts of a server of one process."""

    def __init__(self) -> None:
        self._known: dict[str, Account] = {}

    @contextmanager
    def account(self, name: str, new: Account) -> Iterator[Account]:
        found = self._known.pop(name, None) or new
        self._known[name] = found  # at the end: clients are ordered by their last requests
        if len(self._known) > _MOST_CLIENTS:
            idle = (name for name, each in self._known.items() if not each.under_way and each is not found)
            del self._known[next(idle, name)]
        yield found


class Clients:
    """All clients, by name: the name of its token, or its address. Called by the event loop only."""

    def __init__(self, shares: Shares, clock: Callable[[], float] = time.monotonic, store: Store | None = None) -> None:
        """Know none.

        Args:
            store: keeps what is known of them; None: this process.
        """
        self._shares, self._clock = shares, clock
        self._store = OwnStore() if store is None else store

    @property
    def limited(self) -> bool:
        """Whether there are limits."""
        return self._shares.limited

    def enter(self, name: str) -> None:
        """Count a request; `leave` ends it.

        Raises:
            TooMuchError: the client exceeds its limits; the request is not counted.
        """
        shares = self._shares
        if not shares.limited:
            return
        with self._account(name) as client:
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
        if not self._shares.limited:
            return
        with self._account(name) as client:
            client.under_way -= 1
            client.bytes -= size

    @contextmanager
    def _account(self, name: str) -> Iterator[Account]:
        """Yield the account of a client, with what it may take by now."""
        now, shares = self._clock(), self._shares
        most_requests, most_bytes = max(1.0, shares.per_second * _BURST_S), shares.bytes_per_second * _BURST_S
        with self._store.account(name, Account(0, most_requests, most_bytes, now)) as client:
            passed, client.seen = now - client.seen, now
            client.requests = min(most_requests, client.requests + passed * shares.per_second)
            client.bytes = min(most_bytes, client.bytes + passed * shares.bytes_per_second)
            yield client


def network_of(address: str) -> str:
    """Return the name of a client without a token: its address, or the /64 network of an IPv6 address."""
    if ":" not in address or "." in address:
        return address
    import ipaddress

    try:
        return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
    except ValueError:
        return address
