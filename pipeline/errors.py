"""The errors a user can fix. Every other exception is our bug and keeps its traceback."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
_PROGRAMMING = (AssertionError, AttributeError, LookupError, NameError, NotImplementedError, TypeError)


class PipelineError(Exception):
    """Something the user can fix. The message says where, what was found, what was wanted, and what to do.

    >>> try:
    ...     pipeline.load_build_file("flowers.yaml", ["backend.quantize.percentile=0.9999"])
    ... except pipeline.PipelineError as error:
    ...     print(error)
    --set backend.quantize.percentile: must be in (50, 100], got 0.9999
    """


class ConfigError(PipelineError):
    """A build file, vdsp_params file or flag is wrong. May hold several faults, one per line."""


class DataError(PipelineError):
    """An image, list, label file, checkpoint or result is missing or wrong."""


class ArtefactError(PipelineError):
    """A package or a stage's output is missing, incomplete or changed."""


class BackendError(PipelineError):
    """A runtime is missing, or refused a model."""


def describe_absent(path: Path, otherwise: str = "no such file") -> str:
    """Return why a path leads to nothing: a link without a target, as of an unfinished download, or `otherwise`."""
    return f"is a link to {path.readlink()}, which is not there" if path.is_symlink() else otherwise


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, or the name of its type where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def last_line(error: BaseException) -> str:
    """Return the last line of a library's message, or the name of its type where it says nothing."""
    return str(error).strip().rpartition("\n")[2] or type(error).__name__


def in_a_line(error: BaseException) -> str:
    """Return a library's message in one line of 300 characters at most, or the name of its type."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def is_our_bug(error: BaseException, *, except_in: tuple[str, ...] = ()) -> bool:
    """Tell whether a line of this package raised an exception that only a bug raises.

    For code that must expect any exception of a library: a decoder raises a dozen types for damaged files.

    Args:
        except_in: modules of this package, as "runtimes", whose lines stand directly before those of such a library.
    """
    trace = error.__traceback__
    if trace is None or not isinstance(error, _PROGRAMMING):
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    place = Path(trace.tb_frame.f_code.co_filename)
    return place.is_relative_to(_PACKAGE) and place.relative_to(_PACKAGE).parts[0] not in except_in
