"""The load of a bench: images per request, requests in flight, processes, runtime."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import ConfigError
from pipeline.measure.bench_options import BenchOptions
from pipeline.packages.choice import choose_for, runtime_for
from pipeline.packages.package import Package
from pipeline.run import sweep_record
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import choose


@dataclass(frozen=True, kw_only=True)
class Load:
    """A load: `-b -i -p --runtime`."""

    batch: int = 1  # images per request
    instances: int = 1  # requests in flight, over all processes
    processes: int = 1
    runtime: Runtime = Runtime.AUTO

    def __post_init__(self) -> None:
        for flag, value in (("-b", self.batch), ("-i", self.instances), ("-p", self.processes)):
            if not 1 <= value <= 1024:
                raise ConfigError(f"{flag}: must be in 1..1024, got {value}")

    def as_dict(self, package: Package) -> dict[str, Any]:
        """Return plain data, with the runtime that `auto` means for a package."""
        return {**asdict(self), "runtime": runtime_for(package, self.runtime).value}


def choose_load(package: Package, options: BenchOptions) -> tuple[Load, list[str]]:
    """Return the load of a run, and what the user should know about it.

    Raises:
        ConfigError: a number is out of range.
        BackendError: the runtime is not installed.
        ValueError: there is no such runtime.
    """
    if options.batch is None and options.instances is None and options.runtime is None:
        load, notes = _recall_load(package, options.processes)
    else:
        wanted = Runtime(options.runtime or "auto")
        choose(wanted)  # raises where it is not installed
        load = Load(
            batch=1 if options.batch is None else options.batch,
            instances=1 if options.instances is None else options.instances,
            processes=options.processes,
            runtime=wanted,
        )
        notes = []
    return load, [*notes, *choose_for(package, load.runtime).notes]


def _recall_load(package: Package, processes: int) -> tuple[Load, list[str]]:
    """Return the load that a sweep found best here, or the smallest one."""
    least = Load(processes=processes)  # raises where a number is out of range
    found = sweep_record.recall(package)
    if found is None:
        return least, []
    setting, path = found
    runtime = Runtime(setting.runtime)
    load = Load(batch=setting.batch, instances=setting.instances, processes=processes, runtime=runtime)
    return load, [f"{setting.flags()}, which --sweep found best here ({path})"]
