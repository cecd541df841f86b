"""The `serve` command."""

from __future__ import annotations

import argparse
import re
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.flags import RUNTIMES, add_command, add_model_flag, count
from pipeline.errors import ConfigError
from pipeline.host.extras import install_command

if TYPE_CHECKING:
    from pipeline.serve.settings import Models, Settings, TlsFiles, Wanted

_MIB = 1 << 20
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")
# Modules of the extra `serve` that are imported here.
_EXTRA = (
    *("fastapi", "google", "google.protobuf", "grpc", "grpc_interceptor", "httptools", "kserve", "orjson"),
    *("prometheus_client", "starlette", "uvicorn"),
)


def add_serve(commands: Any) -> None:
    parser = add_command(
        commands,
        "serve",
        _serve,
        "serve packages over REST and gRPC (Open Inference Protocol v2)",
        "python -m pipeline serve -m deploy_weights/.../wide_resnet50_2",
    )
    add_model_flag(parser)
    parser.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        help="folder of packages to serve; packages are loaded and unloaded as the folder changes",
    )
    parser.add_argument(
        "--versions",
        type=count,
        default=1,
        metavar="N",
        help="with --models: how many versions of each model to serve, the newest first",
    )
    parser.add_argument(
        "-b",
        "--batch",
        type=count,
        default=0,
        help="largest batch (default: what bench --sweep found, else 8)",
    )
    parser.add_argument(
        "-i",
        "--instances",
        type=count,
        default=0,
        help="batches computed at the same time (default: what bench --sweep found, else one per core)",
    )
    parser.add_argument(
        "--workers", type=count, default=1, metavar="N", help="server processes on the same ports; they share the cores"
    )
    parser.add_argument("--runtime", choices=RUNTIMES, default="auto", help="auto: what bench --sweep found")
    _add_network(parser)
    _add_access(parser)


def _add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 127.0.0.1: for this machine only")
    parser.add_argument(
        "--insecure", action="store_true", help="accept requests from other machines without TLS or tokens"
    )
    parser.add_argument("--http_port", type=_port, default=8080, metavar="PORT", help="REST port; 0: any free port")
    parser.add_argument("--grpc_port", type=_port, default=8081, metavar="PORT", help="gRPC port; 0: any free port")
    parser.add_argument("--max_body", type=count, default=64, metavar="MIB", help="largest request, in MiB")
    parser.add_argument("--max_pixels", type=count, default=64, metavar="MP", help="largest image, in megapixels")
    parser.add_argument(
        "--max_queue",
        type=count,
        default=512,
        metavar="IMAGES",
        help="most images in the queue; requests beyond it are answered with status 503",
    )
    parser.add_argument(
        "--client_timeout",
        type=_patience,
        default=30.0,
        metavar="S",
        help="seconds that a client has to send a request's head, and its body",
    )
    parser.add_argument(
        "--drain",
        type=_seconds,
        default=2.0,
        metavar="S",
        help="on shutdown, seconds during which new requests are still served",
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="after --drain, seconds for requests under way to finish",
    )


def _add_access(parser: argparse.ArgumentParser) -> None:
    access = parser.add_argument_group("access control")
    access.add_argument("--tls_cert", type=Path, metavar="PEM", help="certificate chain")
    access.add_argument(
        "--tls_key", type=Path, metavar="PEM", help="private key of the certificate, without a passphrase"
    )
    access.add_argument(
        "--tls_client_ca",
        type=Path,
        metavar="PEM",
        help="CA certificates: clients need a certificate issued by one of them",
    )
    access.add_argument("--tokens", type=Path, metavar="FILE", help="clients need a bearer token; see token --help")
    access.add_argument("--open_metrics", action="store_true", help="/metrics needs no token")
    access.add_argument(
        "--client_requests",
        type=count,
        default=0,
        metavar="N",
        help="requests under way per client (default: no limit)",
    )
    access.add_argument(
        "--client_rate",
        type=count,
        default=0,
        metavar="N",
        help="requests per second and client (default: no limit)",
    )
    access.add_argument(
        "--client_mib", type=count, default=0, metavar="N", help="MiB per second and client (default: no limit)"
    )
    access.add_argument(
        "--allow_origin",
        type=_origin,
        nargs="+",
        default=(),
        metavar="ORIGIN",
        help="origins whose pages may call the server from a browser (CORS), such as https://shop.example; '*': any "
        "(default: none)",
    )
    access.add_argument(
        "--access_log", type=Path, metavar="FILE", help="write one JSON line per request; - is standard output"
    )


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected 0 to 65535, got {text!r}")
    return int(text)


def _origin(text: str) -> str:
    if text != "*" and not _ORIGIN.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"expected an origin as browsers send it, such as https://shop.example or http://localhost:3000, got {text}"
        )
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"expected 0 to 3600 seconds, got {text!r}")
    return seconds


def _patience(text: str) -> float:
    seconds = _seconds(text)
    if not seconds:
        raise argparse.ArgumentTypeError(f"expected more than 0 seconds, got {text!r}")
    return seconds


def _tls_files(args: argparse.Namespace) -> TlsFiles | None:
    from pipeline.serve.settings import TlsFiles

    if args.tls_cert is None and args.tls_key is None:
        if args.tls_client_ca is not None:
            raise ConfigError(f"--tls_client_ca {args.tls_client_ca}: needs --tls_cert and --tls_key")
        return None
    if args.tls_cert is None or args.tls_key is None:
        given, lacking = ("--tls_cert", "--tls_key") if args.tls_key is None else ("--tls_key", "--tls_cert")
        raise ConfigError(f"{given}: needs {lacking} too")
    return TlsFiles(args.tls_cert, args.tls_key, args.tls_client_ca)


def _serve(args: argparse.Namespace) -> None:
    from pipeline.runtimes.base import Runtime
    from pipeline.serve.clients import Shares
    from pipeline.serve.settings import Settings, Wanted

    if args.http_port == args.grpc_port != 0:
        raise ConfigError(f"--grpc_port {args.grpc_port}: is that of HTTP; give another")
    wanted = Wanted(Runtime(args.runtime), args.batch, args.instances, args.max_queue)
    settings = Settings(
        host=args.host,
        http_port=args.http_port,
        grpc_port=args.grpc_port,
        max_body=args.max_body * _MIB,
        patience=args.client_timeout,
        drain_seconds=args.drain,
        grace_seconds=args.grace,
        max_pixels=args.max_pixels * 1_000_000,
        tls=_tls_files(args),
        tokens=args.tokens,
        shares=Shares(args.client_requests, args.client_rate, args.client_mib * _MIB),
        access_log=args.access_log,
        open_metrics=args.open_metrics,
        origins=tuple(args.allow_origin),
        insecure=args.insecure,
    )
    _start(args, wanted, settings)


def _start(args: argparse.Namespace, wanted: Wanted, settings: Settings) -> None:
    """Say what is not installed before packages are opened, then serve."""
    if args.workers > 1:
        lacking = [name for name in _EXTRA if "." not in name and find_spec(name) is None]
        if lacking:
            raise _lacks(lacking[0])
        from pipeline.serve.workers import serve_in_workers

        serve_in_workers(_models(args), wanted, settings, args.workers)
        return
    try:
        from pipeline.serve.server import serve
    except ModuleNotFoundError as err:
        if err.name not in _EXTRA:
            raise
        raise _lacks(err.name) from None
    serve(_models(args), wanted, settings)


def _lacks(module: str) -> ConfigError:
    return ConfigError(f"serve needs {module}, which is not installed; run: {install_command('serve')}")


def _models(args: argparse.Namespace) -> Models:
    """Return what the flags name: one package, or a folder of them."""
    from pipeline.packages.package import open_package
    from pipeline.serve.model_folder import find_package, find_packages
    from pipeline.serve.settings import Models

    if args.models is not None:
        if args.model is not None:
            raise ConfigError("--models: serves a folder, -m one package; give one of them")
        root: Path = args.models
        return Models(f"--models {root}", partial(find_packages, root), args.versions, watched=True)
    if args.versions != 1:
        raise ConfigError(f"--versions {args.versions}: needs --models")
    folder = open_package(args.model).folder
    return Models(str(folder), partial(find_package, folder), 1, watched=False)
