"""One writer at a time: the kernel's advisory locks.

The `filelock` library is well maintained, but not used: it locks a file that it creates and truncates, so folders of
results and npz files would hold a lock file beside the user's data, where the folder itself is locked here; and it
would be one more package on machines that only run packages, for a single system call.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class LockedError(Exception):
    """Another process, or another thread of this one, holds the lock."""


@contextlib.contextmanager
def exclusive(path: Path, *, creates: bool = False, waits: bool = True) -> Iterator[None]:
    """Lock a folder or file; the kernel releases it whenever the process ends.

    Args:
        path: a folder, or with `creates` a file whose only use is to be locked.
        creates: make the file if it is not there.
        waits: until the lock is released.

    Raises:
        LockedError: it is held, and `waits` is False.
        OSError: it cannot be opened, or the file system has no locks.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT if creates else os.O_RDONLY, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError as err:
            raise LockedError(f"{path}: another process holds it") from err
        yield
    finally:
        os.close(handle)
