"""How a model is run, and what the workers that run it report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config.vdsp import PreprocessSpec
from pipeline.data.storage import Location
from pipeline.host.hardware import available_cores
from pipeline.runtimes.base import Placement, Runtime
from pipeline.runtimes.opening import place


@dataclass(frozen=True)
class Plan:
    """How a model is run. `instances` and `cores` are totals over all processes."""

    model: Path
    runtime: Runtime
    spec: PreprocessSpec
    batch: int = 1  # images per request (-b)
    instances: int = 1  # requests in flight (-i)
    processes: int = 1  # worker processes (-p)
    cores: int = 0  # 0: all that this process may use
    wide_weights: bool = False  # as of `open_backend`

    def share(self, worker: int) -> Plan:
        """Return the part of worker number `worker`: its requests in flight and cores, at least one of each."""
        cores = self.cores or available_cores()

        def part(total: int) -> int:
            return max(1, total // self.processes + (worker < total % self.processes))

        return replace(self, instances=part(self.instances), cores=part(cores), processes=1)

    def placement(self) -> Placement:
        return place(self.instances, self.cores or available_cores())


@dataclass(frozen=True)
class Entry:
    """One image of a datalist and the file that its result goes to."""

    image: Location
    result: Location


@dataclass(frozen=True)
class Ready:
    """A worker has loaded and warmed up its model."""

    runtime: str
    version: str
    placement: Placement


@dataclass(frozen=True)
class Request:
    """One finished request; times are `time.perf_counter()` seconds, which all processes of a machine share."""

    submitted: float
    finished: float
    images: int


@dataclass(frozen=True)
class StageTimes:
    """Seconds that one request's images spent in each step."""

    read: float
    preprocess: float
    infer: float
    write: float


@dataclass(frozen=True)
class Limit:
    """When a performance run ends: after `iterations` requests in all, or else after `duration_s` seconds."""

    duration_s: float = 10.0
    iterations: int | None = None


Message = Ready | Request | StageTimes
Report = Callable[[Message], None]
