"""The access log: one JSON line for each request, without tokens, queries and images."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO

from pipeline.errors import ConfigError
from pipeline.terminal import console

_LOOK_S = 1.0  # between two checks whether the file was moved away
_LONGEST = 200  # characters of a path


@dataclass
class Visit:
    """One request, as it is logged."""

    protocol: str  # http or grpc
    method: str
    path: str  # without query; over gRPC the method's name
    address: str
    name: str | None = None  # the name of its token
    status: int | str = 0  # 0: the client left
    bytes_in: int = 0  # of the body
    bytes_out: int = 0


class AccessLog:
    """A file, or standard output. A file that is moved away (logrotate) is opened again."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            ConfigError: it cannot be written.
        """
        self._path = None if path == Path("-") else path
        self._stream: TextIO = sys.stdout
        self._looked, self._failed = time.monotonic(), False
        if self._path is not None:
            try:
                self._open(self._path)
            except OSError as err:
                raise ConfigError(f"--access_log {path}: cannot be written ({err.strerror})") from None

    def write(self, visit: Visit, seconds: float) -> None:
        """Add a line. A full disk is reported once, and the server goes on answering."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": now, **asdict(visit), "path": visit.path[:_LONGEST], "ms": round(seconds * 1000, 2)}
        try:
            self._look()
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()
        except OSError as err:
            if not self._failed:
                self._failed = True
                console.warning(f"--access_log {self._path or '-'}: cannot be written ({err.strerror}); lines are lost")
        else:
            self._failed = False

    def close(self) -> None:
        if self._path is not None:
            _close(self._stream)

    def _open(self, path: Path) -> None:
        self._stream = path.open("a", encoding="utf-8")
        self._inode = path.stat().st_ino

    def _look(self) -> None:
        if self._path is None or time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        if not self._path.exists() or self._path.stat().st_ino != self._inode:
            before = self._stream
            self._open(self._path)  # where that fails, lines go where they went before
            _close(before)


def _close(stream: TextIO) -> None:
    with contextlib.suppress(OSError):  # of lines that the disk did not take, which was reported
        stream.close()
