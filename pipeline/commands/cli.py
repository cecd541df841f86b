"""The command line: parse, call one function, print. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import argparse
import difflib
import errno
import functools
import io
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from pipeline.commands import completion
from pipeline.commands.analyze import add_analyze
from pipeline.commands.bench import add_bench
from pipeline.commands.build import add_build
from pipeline.commands.calibset import add_calibset
from pipeline.commands.check import add_check
from pipeline.commands.config import add_config
from pipeline.commands.doctor import add_doctor
from pipeline.commands.evaluate import add_eval
from pipeline.commands.export import add_export
from pipeline.commands.image2npz import add_image2npz
from pipeline.commands.init import add_init
from pipeline.commands.models import add_models
from pipeline.commands.package import add_package
from pipeline.commands.predict import add_predict
from pipeline.commands.serve import add_serve
from pipeline.commands.token import add_token
from pipeline.errors import PipelineError
from pipeline.terminal import console, streams

EXIT_FAULT = 2  # something the user can fix
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in shells
EXIT_READER_GONE = 141  # 128 + SIGPIPE

# Modules that may be missing, for instance on a machine that only runs packages, and what installs them.
_LIBRARIES = {"PIL": "pillow", "yaml": "pyyaml"} | {
    name: name for name in ("numpy", "onnx", "onnxruntime", "safetensors", "scipy", "threadpoolctl", "torch", "tqdm")
}


# Of any file, wherever a command meets them: of the machine, not of this program.
_OF_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP)
_CHOICE = re.compile(r"(.*invalid choice: '([^']*)') \(choose from (.*)\)")  # as argparse says it


class _Parser(argparse.ArgumentParser):
    """Accepts full flag names only: `--data` must not mean `--datalist` today and something else tomorrow."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_known_args(self, *args: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        """Refuse what is unknown here, where the command is known, and not in the parser of all commands."""
        found, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{_nearest(unknown[0].partition('=')[0], flags)}")
        return found, unknown

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print the help, or an error; the standard library passes over a stream that takes nothing."""
        if message:
            print(message, end="", file=file or sys.stderr, flush=True)

    def error(self, message: str) -> NoReturn:
        if wrong := _CHOICE.fullmatch(message):
            hint = _nearest(wrong[2], re.findall(r"[\w.-]+", wrong[3]))
            message = f"{wrong[1]}{hint}" if hint else message
        self.exit(EXIT_FAULT, f"error: {message}{' ' if message.endswith('?') else '; '}see {self.prog} --help\n")


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def main(argv: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None) -> int:
    """Run one command; return its exit code: 0, 2 for a fault the user can fix, 130 after Ctrl-C.

    Args:
        argv: the arguments; those of the process where none are given.
        parser: of another program that has one command, with the defaults that `make_parser` sets.
    """
    streams.open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may be of any bytes
    words = list(sys.argv[1:] if argv is None else argv)
    if parser is None:
        parser, words = make_parser(), as_commands(words)
    completion.offer(parser)
    return _exit_code(parser, words)


def _exit_code(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """Run the command of the arguments; print what a user can fix, and return the exit code."""
    try:
        args = parser.parse_args(words)
        console.configure(quiet=args.quiet, verbose=args.verbose, json_lines=args.log_json)
        args.run(args)
        sys.stdout.flush()
    except PipelineError as err:
        console.error(str(err))
        console.causes(err)
        return EXIT_FAULT
    except ModuleNotFoundError as err:
        if err.name not in _LIBRARIES:
            raise
        library = _LIBRARIES[err.name]
        console.error(f"this command needs {library}, which is not installed; run: pip install {library}")
        return EXIT_FAULT
    except KeyboardInterrupt:
        console.interrupted("interrupted; run the same command again to resume")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `| head` has read enough; Python would report it when it flushes at exit
        streams.drop_output()
        return EXIT_READER_GONE
    except OSError as err:
        if not _explain(err):
            raise
        return EXIT_FAULT
    return 0


def _explain(err: OSError) -> bool:
    """Print a line on an error of the machine, such as a full disk; return whether it was one."""
    unwritable = streams.why_unwritable()
    if unwritable is not None:
        console.error(f"standard output: cannot be written ({unwritable}); send it elsewhere")
        streams.drop_output()
        return True
    if err.errno in _OF_MACHINE:
        console.error(f"{err.filename or 'a file'}: {err.strerror}; fix that, then run again")
        console.causes(err)
        return True
    return False


def as_commands(words: Sequence[str]) -> list[str]:
    """Translate a command line of the vendor's (`vamc build|compile`, `vamp`) to this program's; keep any other."""
    match list(words):
        case ["vamc", "build" | "compile", *rest]:
            return ["build", *rest]
        case ["vamc", *rest]:
            return ["build", *rest] if rest[:1] in ([], ["-h"], ["--help"]) else rest
        case ["compile", *rest]:
            return ["build", *rest]
        case ["vamp", *rest]:
            return ["bench", *rest]
        case same:
            return same


def run() -> NoReturn:
    """Run the command of `sys.argv`, and exit."""
    code = main()
    # The work is done. Ctrl-C while Python shuts down would end it by the signal, as if it had failed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if code == EXIT_INTERRUPTED:
        # Where Ctrl-C came inside an exec() of a string, for instance while a dataclass is created, CPython remembers
        # it and ends `python -m` by the signal, whatever the exit code. Another exec() clears that.
        exec("")
    sys.exit(code)


class _Version(argparse.Action):
    """Prints the version, which is looked up only when needed."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from pipeline.version import NAME, version

        print(f"{NAME} {version()}", flush=True)
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m pipeline",
        description="Quantize image classifiers to int8, measure and run them on CPUs. Start with: build, bench, eval.",
        epilog="The vendor's commands work too: vamc build and vamc compile for build, vamp for bench.",
        # argparse makes no room for the indentation of commands: by two, the longest stood on a line of its own.
        formatter_class=functools.partial(argparse.HelpFormatter, indent_increment=1),
    )
    parser.add_argument("--version", nargs=0, action=_Version, help="print the version and exit")
    # Without a command: the help.
    parser.set_defaults(run=lambda _: parser.print_help(), quiet=False, verbose=False, log_json=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    for add in (
        add_build,
        add_bench,
        add_eval,
        add_predict,
        add_serve,
        add_token,
        add_analyze,
        add_package,
        add_export,
        add_calibset,
        add_image2npz,
        add_check,
        add_config,
        add_models,
        add_doctor,
        add_init,
    ):
        add(commands)
    return parser
