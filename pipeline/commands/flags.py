"""What several commands share."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.data.storage import Location
    from pipeline.host.cluster import Cluster

RUNTIMES = ("auto", "openvino", "onnxruntime")


def count(text: str) -> int:
    """Parse a flag's number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=f"example: {example}"
    )
    parser.set_defaults(run=run)
    said = parser.add_argument_group("what it says")
    level = said.add_mutually_exclusive_group()
    level.add_argument("--quiet", action="store_true", help="only results and errors: no steps, no progress")
    level.add_argument("--verbose", action="store_true", help="details too: where artefacts lie, how models are opened")
    said.add_argument("--log-json", action="store_true", help="steps, progress and errors as JSON lines on stderr")
    return parser


def place(text: str) -> Location:
    """Parse a flag's path or URL."""
    from pipeline.data.storage import location

    return location(text)


def file_here(text: str) -> Path:
    """Parse a flag's path, where a URL will not do."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"expected a file on a disk, got {text!r}")
    return Path(text)


def add_engine_flags(parser: argparse.ArgumentParser, of: str = "") -> None:
    group = parser.add_argument_group("where it computes")
    group.add_argument(
        "--engine", choices=("local", "ray"), default="local", help=f"{of}local: here; ray: a Ray cluster (local)"
    )
    group.add_argument(
        "--address", metavar="ADDR", help="of --engine ray: the cluster, auto or HOST:PORT (one for this run, here)"
    )


def cluster_of(args: argparse.Namespace) -> Cluster | None:
    """Return the cluster that the flags name; None for this machine."""
    if args.engine == "ray":
        from pipeline.host.cluster import Cluster

        return Cluster(args.address)
    if args.address is not None:
        raise ConfigError(f"--address {args.address}: is of a Ray cluster; add --engine ray, or leave it out")
    return None


def is_standard_output(path: Path | None) -> bool:
    """Tell whether a flag's file is standard output: -, or /dev/stdout by any of its names."""
    from pipeline.artefacts import STANDARD_OUTPUT, open_descriptor

    return path is not None and (path == Path("-") or open_descriptor(path) == STANDARD_OUTPUT)


def sayer(json_path: Path | None) -> Callable[[str], None]:
    """Return what prints lines for people: on standard error where JSON has standard output."""
    stream = sys.stderr if is_standard_output(json_path) else sys.stdout
    return lambda text: print(text, file=stream, flush=True)


def add_results_flag(parser: argparse.ArgumentParser, **settings: Any) -> None:
    """Add the flag of the folder that bench writes and eval reads: the documents give it a name in each."""
    parser.add_argument("--results", "--path_output", "--result_path", dest="results", metavar="DIR", **settings)


def add_report_flag(parser: argparse.ArgumentParser, of: str = "") -> None:
    parser.add_argument("--report", type=Path, metavar="FILE.html", help=f"{of}write a page to look at")


def check_report_path(path: Path | None) -> None:
    if path is not None and path.is_dir():
        raise ConfigError(f"--report {path}: is a folder; give a file")


def check_json_path(path: Path | None) -> None:
    if path is not None and path.is_dir():
        raise ConfigError(f"--json {path}: is a folder; give a file")


def print_json(path: Path | None, value: object) -> None:
    from pipeline.artefacts import write_json

    if is_standard_output(path):
        print(json.dumps(value, indent=1, sort_keys=True))
    elif path is not None:
        try:
            write_json(path, value)
        except OSError as err:
            raise ConfigError(f"--json {path}: cannot be written ({err.strerror}); give another") from None


def add_checkpoint_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint_key", metavar="KEY", help="which weights of the checkpoint (the averaged ones, or all there are)"
    )


def add_suffix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suffix", default="any", help="of the image files: JPEG (.jpg too), png, ... (any)")
