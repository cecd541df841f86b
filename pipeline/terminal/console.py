"""What commands print while they work: lines for people, or JSON lines for programs. Results are printed elsewhere."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TextIO

from pipeline.terminal import streams


@dataclass
class _Style:
    quiet: bool = True  # until the command line configures it: a library says nothing but warnings
    verbose: bool = False
    json_lines: bool = False
    silent: bool = False  # for a while: no notes, warnings and details
    prefix: str = ""  # of every line: which of several processes says it


_style = _Style()
_lock = threading.RLock()  # the status line is redrawn by a thread of its own
_status = ""  # the last line of the terminal, as it is drawn now
_ERASE = "\r\x1b[K"  # what stands in the line of the cursor


def configure(*, quiet: bool = False, verbose: bool = False, json_lines: bool = False, prefix: str = "") -> None:
    """Choose what is printed and how, for the whole process.

    Args:
        quiet: only results and errors; no steps, no progress.
        verbose: details too.
        json_lines: every event is a JSON object in a line of standard error.
        prefix: of every line for people, and of the text of every event.
    """
    _style.quiet, _style.verbose, _style.json_lines, _style.prefix = quiet, verbose, json_lines, prefix


def configuration() -> dict[str, bool]:
    """Return what `configure` was given, but for the prefix, for processes that this one starts."""
    return {"quiet": _style.quiet, "verbose": _style.verbose, "json_lines": _style.json_lines}


@contextmanager
def silence() -> Iterator[None]:
    """Say no notes, warnings and details in the body: a step that reads the same files later says them."""
    before = _style.silent
    _style.silent = True
    try:
        yield
    finally:
        _style.silent = before


def is_quiet() -> bool:
    return _style.quiet


def writes_json() -> bool:
    return _style.json_lines


def shows_status() -> bool:
    """Tell whether there is a terminal to draw a status line on."""
    return sys.stderr.isatty() and not _style.quiet and not _style.json_lines


def status(text: str) -> None:
    """Draw the last line of the terminal in place of what it was; "" removes it. Lines are printed above it."""
    global _status
    if not shows_status():
        return
    with _lock:
        _status = text[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write(_ERASE + _status)
        sys.stderr.flush()


def _print(text: str, file: TextIO | None = None) -> None:
    """Print a line, above the status line if there is one."""
    with _lock:
        if _status:
            sys.stderr.write(_ERASE)
            sys.stderr.flush()
        # In one write: another process may print at the same time.
        print(f"{_style.prefix}{text}\n", end="", file=file, flush=True)
        if _status:
            sys.stderr.write(_status)
            sys.stderr.flush()


def step(text: str) -> None:
    """Print that a step begins, or what it did."""
    if _style.json_lines:
        event("step", text=text)
    elif not _style.quiet and not streams.is_output_closed():  # a result that is lost is an error, a step is not
        _print(text)


def note(text: str) -> None:
    """Print a line about the work, beside its results, on standard error."""
    if _style.silent:
        return
    if _style.json_lines:
        event("note", text=text)
    elif not _style.quiet:
        _print(text, sys.stderr)


def warning(text: str) -> None:
    """Print what makes results doubtful; also when quiet."""
    if _style.silent:
        return
    if _style.json_lines:
        event("warning", text=text)
    else:
        _print(text, sys.stderr)


def detail(text: str) -> None:
    """Print a detail for diagnosis; only when verbose."""
    if _style.silent:
        return
    if _style.verbose and _style.json_lines:
        event("detail", text=text)
    elif _style.verbose:
        _print(f"  {text}", sys.stderr)


def error(text: str) -> None:
    """Print an error, one line for each fault."""
    for line in text.splitlines():
        if _style.json_lines:
            event("error", text=line)
        else:
            _print(f"error: {line}", sys.stderr)


def causes(err: BaseException) -> None:
    """Say, to somebody who looks for a cause, where an error came from: each exception that led to it."""
    while err.__traceback__ is not None:
        for line in "".join(traceback.format_exception(err, chain=False)).splitlines():
            detail(line)
        cause = err.__cause__ or err.__context__  # also of `from None`, which hides it from tracebacks alone
        if cause is None:
            return
        detail("caused by:")
        err = cause
    detail(str(err).strip())


def interrupted(text: str) -> None:
    """Print how to resume after Ctrl-C."""
    if _style.json_lines:
        event("interrupted", text=text)
    else:
        _print(text, sys.stderr)


def event(kind: str, **facts: object) -> None:
    """Write one JSON line; when quiet, only for what ends a command or makes its results doubtful."""
    if _style.quiet and kind not in ("warning", "error", "interrupted"):
        return
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    if _style.prefix and "text" in facts:
        facts["text"] = f"{_style.prefix}{facts['text']}"
    print(json.dumps({"time": now, "event": kind, **facts}) + "\n", end="", file=sys.stderr, flush=True)
