"""Flags and helpers that several commands share."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.config.kinds import Switch
from pipeline.config.sections import declaration, declared_keys
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


class HelpFormatter(argparse.HelpFormatter):
    """Ends the help of a flag that has a default with `(default: X)`."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        silent = action.default is None or isinstance(action.default, (bool, list)) or "(default:" in text
        if silent or action.default == argparse.SUPPRESS or not action.option_strings:
            return text
        return f"{text} (default: %(default)s)".lstrip()


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=f"example: {example}", formatter_class=HelpFormatter
    )
    parser.set_defaults(run=run)
    said = parser.add_argument_group("output")
    level = said.add_mutually_exclusive_group()
    level.add_argument("--quiet", action="store_true", help="print only results and errors: no steps, no progress")
    level.add_argument(
        "--verbose", action="store_true", help="print details too: where artefacts are, how models are opened"
    )
    said.add_argument(
        "--log-json", action="store_true", help="print steps, progress and errors as JSON lines on stderr"
    )
    return parser


def read_location(text: str) -> Location:
    """Parse a flag's path or URL."""
    from pipeline.data.storage import location

    return location(text)


def read_local_path(text: str) -> Path:
    """Parse a flag's path, where a URL is not supported."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"expected a file on a disk, got {text!r}")
    return Path(text)


def add_engine_flags(parser: argparse.ArgumentParser, of: str = "") -> None:
    group = parser.add_argument_group("where to compute")
    group.add_argument(
        "--engine", choices=("local", "ray"), default="local", help=f"{of}local: this machine; ray: a Ray cluster"
    )
    group.add_argument(
        "--address",
        metavar="ADDR",
        help="with --engine ray: the cluster, auto or HOST:PORT (default: one for this run, on this machine)",
    )


def cluster_of(args: argparse.Namespace) -> Cluster | None:
    """Return the cluster that the flags name; None for this machine."""
    if args.engine == "ray":
        from pipeline.host.cluster import Cluster

        return Cluster(args.address)
    if args.address is not None:
        raise ConfigError(f"--address {args.address}: needs a Ray cluster; add --engine ray, or leave it out")
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


def add_model_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag of the package that a command works on."""
    parser.add_argument(
        "-m", "--model", type=Path, metavar="PREFIX", help="package: folder/name (default: the last one built)"
    )


def add_override_flag(parser: argparse.ArgumentParser) -> None:
    """Add PaddleClas's flag that overrides a key of its config, which `-c` names."""
    parser.add_argument(
        "-o", dest="set", action="append", default=[], metavar="KEY=VALUE", help="override a key of that config"
    )


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file; - is standard output")


def add_report_flag(parser: argparse.ArgumentParser, of: str = "") -> None:
    parser.add_argument("--report", type=Path, metavar="FILE.html", help=f"{of}write an HTML report")


def check_report_path(path: Path | None) -> None:
    """Raise ConfigError where `--report` names what cannot be written, before any work."""
    _check_writable("--report", path)


def check_json_path(path: Path | None) -> None:
    """Raise ConfigError where `--json` names what cannot be written, before any work."""
    _check_writable("--json", path)


def _check_writable(flag: str, path: Path | None) -> None:
    """Look at the file's folder, or where that is to be made, at the nearest one above it."""
    from pipeline.artefacts import is_written_through

    if path is None or is_standard_output(path) or is_written_through(path):
        return
    if path.is_dir():
        raise ConfigError(f"{flag} {path}: is a folder; give a file")
    above = next(folder for folder in Path(os.path.realpath(path)).parents if folder.exists())
    if not above.is_dir():
        raise ConfigError(f"{flag} {path}: cannot be written ({above} is a file); give another")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{flag} {path}: cannot be written (Permission denied); give another")


def print_json(path: Path | None, value: object) -> None:
    from pipeline.artefacts import write_json

    if is_standard_output(path):
        print(json.dumps(value, indent=1, sort_keys=True))
    elif path is not None:
        try:
            write_json(path, value)
        except OSError as err:
            raise ConfigError(f"--json {path}: cannot be written ({err.strerror}); give another") from None


@contextmanager
def open_output(flag: str, path: Path) -> Iterator[IO[str]]:
    """Yield standard output for `-`, else a file that appears when it is complete.

    Raises:
        ConfigError: it cannot be written; the message names the flag.
    """
    from pipeline.artefacts import whole_file

    if is_standard_output(path):
        yield sys.stdout
        return
    if path.is_dir():
        raise ConfigError(f"{flag} {path}: is a folder; give a file")
    try:
        # Names that are not UTF-8 hold lone surrogates; replaced by backslashes, they become JSON escapes.
        with whole_file(path) as scratch, scratch.open("w", encoding="utf-8", errors="backslashreplace") as stream:
            yield stream
    except OSError as err:
        raise ConfigError(f"{flag} {path}: cannot be written ({err.strerror}); give another") from None


def add_key_flag(parser: argparse.ArgumentParser, key: str, *names: str, **more: Any) -> None:
    """Add a flag that stands for a key of build files; its help says what the key's declaration says.

    Args:
        names: of the flag, where it is not the one that `build` has.
        more: arguments of `add_argument`.
    """
    declared = declaration(key)
    named = names or tuple(filter(None, (declared.flag,)))
    meaning = declared.meaning if names or declared.flag_means is None else declared.flag_means
    values = "" if names else declared.kind.values() if declared.flag_means is None else ""
    text = f"{meaning}{f': {values}' if values else ''} ({key})".replace("%", "%%")
    given = {"metavar": declared.metavar, **more} if declared.metavar else more
    if isinstance(declared.kind, Switch):
        given, text = {"action": "store_const", "const": "true"}, text.replace(": true, false (", " (")
    parser.add_argument(*named, help=text, **given)


def flagged_keys() -> list[str]:
    """Return the keys that have a flag of `build`."""
    return [key for key, declared in declared_keys() if declared.flag is not None]


def key_values(args: argparse.Namespace) -> dict[str, object]:
    """Return the plain values of the flags of `flagged_keys` that were given, by key."""
    found = {}
    for key in flagged_keys():
        declared = declaration(key)
        text = getattr(args, str(declared.flag).removeprefix("--"))
        if text is not None:
            found[key] = declared.kind.parse(text)
    return found
