"""How to serve, and whether that is safe."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.serve.clients import Shares
from pipeline.serve.tls import TlsFiles


@dataclass(frozen=True)
class Settings:
    """How to serve."""

    host: str
    http_port: int  # 0: any that is free
    grpc_port: int
    max_body: int  # bytes of a request
    max_pixels: int  # of an image file
    patience: float  # s for a request's head, and more for its body
    drain_seconds: float  # after the signal to stop: still serving, while clients leave
    grace_seconds: float  # then: for requests under way
    tls: TlsFiles | None = None
    tokens: Path | None = None  # None: no authentication
    shares: Shares = field(default_factory=Shares)  # of one client
    access_log: Path | None = None
    open_metrics: bool = False  # /metrics without a token
    insecure: bool = False  # listen where others reach it, without TLS or without authentication


def check_exposure(settings: Settings) -> None:
    """Raise ConfigError where other machines could reach it without TLS or without authentication."""
    if settings.insecure or _is_loopback(settings.host):
        return
    lacking = []
    if settings.tls is None:
        lacking.append("TLS (--tls_cert, --tls_key)")
    if settings.tokens is None and (settings.tls is None or settings.tls.client_ca is None):
        lacking.append("asking who comes (--tokens or --tls_client_ca)")
    if lacking:
        raise ConfigError(
            f"--host {settings.host}: other machines could reach it, without {' and without '.join(lacking)}; give "
            "them, or --insecure where a proxy or the network keeps strangers out"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
