"""The results of a bench, as lines for people and as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from pipeline.data.storage import Location
from pipeline.host import hardware
from pipeline.host.cluster import Cluster
from pipeline.measure.load import Load
from pipeline.packages.package import Package
from pipeline.run.performance import Performance
from pipeline.terminal.counts import counted


@dataclass(frozen=True)
class SpeedComparison:
    """The speed of a package and of float32, measured in turn so that a change in the machine's speed affects both."""

    precision: str  # of the package: int8, fp16, fp32
    package: tuple[Performance, ...]
    float32: tuple[Performance, ...]

    @property
    def ratios(self) -> list[float]:
        """How many times as fast the package was, round by round."""
        rounds = zip(self.package, self.float32, strict=True)
        return [round(package.throughput / float32.throughput, 3) for package, float32 in rounds]

    def as_dict(self) -> dict[str, Any]:
        return {
            self.precision: [asdict(each) for each in self.package],
            "float32": [asdict(each) for each in self.float32],
            "ratios": self.ratios,
            "median_ratio": median(self.ratios),
        }

    def __str__(self) -> str:
        package = median(each.throughput for each in self.package)
        float32 = median(each.throughput for each in self.float32)
        rounds = ", ".join(f"{ratio:.2f}" for ratio in self.ratios)
        return (
            f"{self.precision} {package:.1f} images/s, float32 {float32:.1f} images/s (medians); "
            f"{self.precision} is {median(self.ratios):.2f}x as fast (in turn: {rounds})"
        )


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """The outcome of a bench; what was not measured is None."""

    package: Package
    load: Load
    notes: tuple[str, ...] = ()  # what is doubtful about the package, its preprocessing or the load on this machine
    performance: Performance | None = None  # on synthetic images
    comparison: SpeedComparison | None = None  # with float32, on synthetic images
    accuracy_run: Performance | None = None  # over the datalist; None too where an earlier run had done all of it
    results: Location | None = None  # the folder of the answers, for `evaluate`
    cluster: Cluster | None = None

    @property
    def has_speed(self) -> bool:
        """Whether speed was measured."""
        return self.performance is not None or self.comparison is not None

    @property
    def speed(self) -> Performance:
        """Throughput and latency on synthetic images; with float32 in turn, those of the package's last round.

        Raises:
            ValueError: speed was not measured.
        """
        if self.comparison is not None:
            return self.comparison.package[-1]
        if self.performance is None:
            raise ValueError("speed was not measured: the options of bench had speed=False")
        return self.performance

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, as `bench --json` writes it."""
        return {
            "package": str(self.package.prefix),
            "model_sha256": self.package.digest,
            "sample": self.package.uses_sample,
            "machine": hardware.describe(),
            "cluster": str(self.cluster) if self.cluster else None,
            "load": self.load.as_dict(self.package),
            "performance": asdict(self.performance) if self.performance else None,
            "comparison": self.comparison.as_dict() if self.comparison else None,
            "accuracy_run": asdict(self.accuracy_run) if self.accuracy_run else None,
        }


def describe(
    measured: Performance, title: str, cluster: Cluster | None = None, shown: Performance | None = None
) -> list[str]:
    """Return the lines that the command prints.

    Args:
        measured: a run.
        title: what it measured.
        cluster: where it computed, in place of this machine.
        shown: the run that was described just before, here; what both ran on is not said again.
    """
    latency = "  ".join(f"{name} {value:.1f}" for name, value in measured.latency_ms.items())
    images = counted(measured.images, "image")
    lines = [
        f"{title}: {measured.throughput:.1f} images/s ({images} in {measured.seconds:.1f} s)",
        f"latency of a request, ms: {latency}",
    ]
    ran_on = _ran_on(measured, cluster)
    if shown is None or ran_on != _ran_on(shown):
        lines.append(ran_on)
    if measured.stage_seconds:
        spent = "  ".join(f"{name} {seconds:.1f}" for name, seconds in measured.stage_seconds.items())
        lines.append(f"thread seconds in: {spent} (infer includes waiting for a stream)")
    return lines


def _ran_on(measured: Performance, cluster: Cluster | None = None) -> str:
    """Return runtime, processes, streams and threads of a run, and the machine."""
    sets = ", ".join(hardware.instruction_sets()) or "no int8 instructions known"
    here = f"{hardware.cpu_name()}, {counted(hardware.available_cores(), 'core')}, {sets}"
    worker = measured.workers[0]
    streams = sum(each["streams"] for each in measured.workers)
    threads = sum(each["threads"] for each in measured.workers)
    return (
        f"ran on {worker['runtime']} {worker['version']}, {counted(len(measured.workers), 'process', 'processes')}, "
        f"{counted(streams, 'stream')}, {counted(threads, 'thread')}; {cluster or here}"
    )
