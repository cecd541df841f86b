"""Sockets that listen, or hold a port for several processes."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from pipeline.errors import BackendError

BACKLOG = 2048  # connections that wait to be accepted


@contextlib.contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a listening socket.

    Raises:
        BackendError: the port is taken, or the address is not of this machine.
    """
    with _faults(host, port, "another"):
        listener = socket.create_server((host, port), family=_family(host), backlog=BACKLOG)
    with listener:
        yield listener


@contextlib.contextmanager
def reserve(host: str, port: int, flag: str) -> Iterator[int]:
    """Hold a port, 0 for any, on which processes of this user may listen together; yield its number.

    Args:
        flag: which names the port.

    Raises:
        BackendError: as `listen`.
    """
    with _faults(host, port, f"another {flag}"):
        # Others that share their port would let us share it too, so it must be free without sharing first.
        with _bind(host, port, shared=False) as alone:
            port = alone.getsockname()[1]
        holding = _bind(host, port, shared=True)
    with holding:
        yield port


@contextlib.contextmanager
def join(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket on a port that a parent holds. It does not listen yet."""
    with _faults(host, port, "another"):
        joined = _bind(host, port, shared=True)
    with joined:
        yield joined


def _bind(host: str, port: int, *, shared: bool) -> socket.socket:
    made = socket.socket(_family(host), socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as socket.create_server
        made.bind((host, port))
    except BaseException:
        made.close()
        raise
    return made


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@contextlib.contextmanager
def _faults(host: str, port: int, advice: str) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise BackendError(
            f"{host}, port {port}: cannot be listened on ({os.strerror(err.errno or 0)}); give {advice}"
        ) from None
