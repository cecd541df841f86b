"""The end of threads, as the kernel sees it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path

_LONGEST_S = 1.0
_STEP_S = 0.001


def wait_for_end(native_ids: Iterable[int]) -> None:
    """Wait until those of some threads that Python has joined are gone, for a second at most. Linux only.

    A thread that was joined still runs the destructors that native libraries registered for its end.

    Args:
        native_ids: of `threading.get_native_id`; threads that Python still runs are not waited for.
    """
    running = {thread.native_id for thread in threading.enumerate()}
    ending = [Path(f"/proc/self/task/{native_id}") for native_id in native_ids if native_id not in running]
    deadline = time.monotonic() + _LONGEST_S
    while any(task.exists() for task in ending) and time.monotonic() < deadline:
        time.sleep(_STEP_S)
