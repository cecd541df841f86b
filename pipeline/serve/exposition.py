"""What `/metrics` shows: of one process, or of all workers together."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from pipeline.serve.siblings import worker_pids

_TICKS = os.sysconf("SC_CLK_TCK")  # a second


def make_registry(folder: Path | None) -> CollectorRegistry:
    """Return what is to be shown.

    Args:
        folder: that workers share; None: there is one process.
    """
    if folder is None:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    registry.register(_Processes(folder))
    return registry


class _Processes(Collector):
    """The metrics of prometheus_client's ProcessCollector, of all processes of the server together. Linux only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        parent = multiprocessing.parent_process()
        # The server's first process, and the one that workers are forked from. They have the CPU time of workers that
        # ended, so that the total does not fall.
        self._older = sorted({each for each in (parent.pid if parent else None, os.getppid()) if each and each > 1})

    def collect(self) -> Iterable[Metric]:
        workers = worker_pids(self._folder)
        living = [*self._older, *workers]
        seconds = sum(_cpu_seconds(pid, with_ended_children=pid in self._older) for pid in living)
        yield CounterMetricFamily("process_cpu_seconds", "CPU time of all processes of the server", seconds)
        text = "Memory of all processes of the server; what they share counts once"
        yield GaugeMetricFamily("process_resident_memory_bytes", text, sum(map(_memory_bytes, living)))
        begun = min(map(_start_time, living))
        yield GaugeMetricFamily("process_start_time_seconds", "When the server was started", begun)
        text = "Open files of all processes of the server"
        yield GaugeMetricFamily("process_open_fds", text, sum(map(_open_files, living)))


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; none of a process that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_seconds(pid: int, *, with_ended_children: bool) -> float:
    ticks = _stat(pid)[11 : 15 if with_ended_children else 13]  # user, system, and those of children
    return sum(map(int, ticks)) / _TICKS


def _start_time(pid: int) -> float:
    """Return when a process was started, in s since the epoch; infinity when it has ended."""
    fields = _stat(pid)
    booted = next((float(line.split()[1]) for line in _lines(Path("/proc/stat")) if line.startswith("btime ")), 0.0)
    return booted + int(fields[19]) / _TICKS if fields else math.inf


def _memory_bytes(pid: int) -> int:
    """Return the proportional set size: a page that n processes have counts as an n-th in each."""
    sizes = (line.split()[1] for line in _lines(Path(f"/proc/{pid}/smaps_rollup")) if line.startswith("Pss:"))
    return int(next(sizes, 0)) * 1024


def _open_files(pid: int) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it has ended
        return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # it has ended
        return []
