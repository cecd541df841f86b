"""What a running program takes over time: memory, file descriptors, threads, CPU; and control groups that bound it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import ConfigError

GROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 100_000
TICKS = os.sysconf("SC_CLK_TCK")  # a second


@dataclass(frozen=True)
class Sample:
    """One process and those that it started, at one moment."""

    seconds: float  # since watching began
    memory_mib: float  # resident, summed over the processes: what they share counts once in each
    descriptors: int
    threads: int
    processes: int
    cpu_s: float  # of the processes that still run


class Watch:
    """Samples a process and its descendants in a thread, until it is closed."""

    def __init__(self, pid: int, every_s: float) -> None:
        self._pid, self._every_s = pid, every_s
        self._begun = time.monotonic()
        self._closed = threading.Event()
        self.samples: list[Sample] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            if (found := take(self._pid, time.monotonic() - self._begun)) is not None:
                self.samples.append(found)


def take(pid: int, seconds: float) -> Sample | None:
    """Return what a process and its descendants take now; None where it has ended."""
    found = [row for each in _family(pid) if (row := _look(each)) is not None]
    if not found:
        return None
    memory, descriptors, threads, cpu = (sum(column) for column in zip(*found, strict=True))
    return Sample(seconds, memory, int(descriptors), int(threads), len(found), cpu)


def _look(pid: int) -> tuple[float, int, int, float] | None:
    process = Path("/proc") / str(pid)
    try:
        pages = int((process / "statm").read_text("ascii").split()[1])
        spent = (process / "stat").read_text("utf-8").rpartition(")")[2].split()[11:13]
        descriptors, threads = (len(list((process / kind).iterdir())) for kind in ("fd", "task"))
    except (OSError, IndexError):  # it has ended
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, descriptors, threads, sum(map(int, spent)) / TICKS


def _family(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for task in (Path("/proc") / str(pid) / "task").iterdir():
            for child in (task / "children").read_text("ascii").split():
                yield from _family(int(child))


def slope(samples: Sequence[Sample], after_s: float) -> tuple[float, float]:
    """Return the growth of memory by least squares, and its standard error, in MiB an hour.

    Args:
        after_s: samples before that are warm-up.
    """
    kept = [each for each in samples if each.seconds >= after_s]
    if len(kept) < 3:
        return float("nan"), float("nan")
    hours = np.array([each.seconds for each in kept]) / 3600
    memory = np.array([each.memory_mib for each in kept])
    centred = hours - hours.mean()
    growth = centred @ memory / (centred @ centred)
    left = memory - memory.mean() - growth * centred
    return float(growth), float(np.sqrt(left @ left / (len(kept) - 2) / (centred @ centred)))


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (titles, ["---"] * len(titles), *rows)) + "\n"


@contextmanager
def quota(cores: float) -> Iterator[list[str]]:
    """Yield what to put before a command so that it gets at most so many cores; 0: nothing.

    Raises:
        ConfigError: no control group can be made here.
    """
    if not cores:
        yield []
        return
    unified = (GROUPS / "cgroup.controllers").exists()
    group = (GROUPS if unified else GROUPS / "cpu") / f"long-run-{os.getpid()}"
    allowed_us = round(cores * PERIOD_US)
    try:
        group.mkdir()
        if unified:
            (group / "cpu.max").write_text(f"{allowed_us} {PERIOD_US}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(allowed_us))
    except OSError as err:
        raise ConfigError(f"--quota {cores:g}: {group}: {err.strerror}; give --quota 0 and a --rate") from err
    try:
        yield ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")]
    finally:
        group.rmdir()
