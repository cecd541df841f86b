"""What to serve and how, and whether that is safe. Plain data, which worker processes receive too."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.runtimes.base import Runtime
from pipeline.serve.clients import Shares
from pipeline.serve.model_folder import Found


@dataclass(frozen=True)
class Part:
    """Which of several equal worker processes this one is, for what they share out among them."""

    number: int = 0
    of: int = 1

    def share(self, total: int) -> int:
        """Return this worker's part of a total, at least one."""
        return max(1, total // self.of + (self.number < total % self.of))


@dataclass(frozen=True)
class Models:
    """What is served."""

    where: str  # for errors
    find: Callable[[], Sequence[Found]]  # picklable
    keep: int  # newest versions of each model
    watched: bool  # look for new packages now and then, not only on SIGHUP


@dataclass(frozen=True)
class Wanted:
    """How packages are to be opened."""

    runtime: Runtime
    batch: int  # largest number of images computed at once; 0: what a sweep of the package found, or 8
    instances: int  # batches computed at the same time, of all workers; 0: what a sweep found, or one per core
    max_queue: int  # images that wait, in each worker
    part: Part = Part()


@dataclass(frozen=True)
class TlsFiles:
    """What the flags name."""

    certificate: Path  # PEM, the server's own first, then its chain
    key: Path  # PEM, without a passphrase
    client_ca: Path | None = None  # PEM: clients must have a certificate signed by one of these

    @property
    def paths(self) -> list[Path]:
        return [self.certificate, self.key] + ([self.client_ca] if self.client_ca is not None else [])


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
    origins: tuple[str, ...] = ()  # of pages in browsers that may read answers; "*": any
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


def describe_address(settings: Settings) -> str:
    """Return where clients reach it; its ports are known by then."""
    host, secure = settings.host, "s" if settings.tls is not None else ""
    shown = f"[{host}]" if ":" in host else host
    return f"http{secure}://{shown}:{settings.http_port} and grpc{secure}://{shown}:{settings.grpc_port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
