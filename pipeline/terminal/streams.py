"""Standard streams that cannot be used: closed by the caller, or sent to where nothing can be written."""

from __future__ import annotations

import os
import sys

_closed: set[str] = set()  # names of the streams that the caller closed


def open_closed() -> None:
    """Give standard output and standard error something to write to where the caller closed them (`>&-`).

    Their numbers are taken too: a file opened later would get them, and what a library prints would end in it. What is
    printed on standard output is what a command was run for, so that writing there is an error (EBADF); what goes to
    standard error is dropped.
    """
    for number, name, mode in ((1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, mode)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8"))
            _closed.add(name)


def is_output_closed() -> bool:
    """Tell whether the caller closed standard output."""
    return "stdout" in _closed


def why_unwritable() -> str | None:
    """Return why standard output cannot be written to, as on a full disk; None where it can, with an empty line."""
    try:
        print(flush=True)  # without a buffer (PYTHONUNBUFFERED) nothing is left of what failed, which flush would try
    except OSError as err:
        return "it is closed" if is_output_closed() else err.strerror
    return None


def drop_output() -> None:
    """Let what is left in standard output's buffer go nowhere, so that Python does not report it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
