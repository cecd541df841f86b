"""What the scripts here share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.host.hardware import available_cores
from pipeline.runtimes.base import Batch, Runtime
from pipeline.runtimes.opening import open_backend, place

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


def run_once(runtime: Runtime, model: Path, images: Mapping[str, Batch], streams: int) -> None:
    """Open a model and run it on a batch of the dtype that it takes. Some runtimes end their process here."""
    placement = place(streams, available_cores())
    batch = max(map(len, images.values()))
    with open_backend(runtime, model, batch=batch, placement=placement) as backend:
        backend.infer(images[backend.input.dtype])
