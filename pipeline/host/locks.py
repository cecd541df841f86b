"""One writer at a time: the kernel's advisory locks.

Not the `filelock` library, though it is well kept: it locks a file that it makes and truncates, so that folders of
results and of npz would hold a lock file beside the user's data, where these lock the folder itself; and it would be
one more package on machines that only run packages, for what is one call of the kernel.
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
    """Hold a folder or file; the kernel lets go of it when the process ends, however it ends.

    Args:
        path: a folder, or with `creates` a file whose only use is to be locked.
        creates: make the file if it is not there.
        waits: until whoever holds it lets go.

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
