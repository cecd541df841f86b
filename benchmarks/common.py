"""What the scripts here share."""

from __future__ import annotations

import sys
from collections.abc import Callable

from pipeline.errors import PipelineError

FAULT = 2  # exit code: something the user can fix, and it has been said
INTERRUPTED = 130


def exit_code(work: Callable[[], object]) -> int:
    """Do the work of a script; say in a line what the user can fix."""
    try:
        work()
    except PipelineError as err:
        for line in str(err).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return FAULT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0
