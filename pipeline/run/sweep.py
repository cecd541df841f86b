"""Sweep: the runtime, images per request and requests in flight that serve a package best on this machine.

`sweep_record` keeps what it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from pipeline.errors import DataError
from pipeline.host import hardware
from pipeline.packages.choice import fit_runtimes
from pipeline.packages.package import Package
from pipeline.run.performance import Recorder
from pipeline.run.plan import Limit, Plan
from pipeline.run.runner import measure
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import choose
from pipeline.terminal.progress import progress_bar

BATCHES = (1, 2, 4, 8, 16, 32, 64)
SECONDS = 3.0  # of each setting
UNSWEPT_BATCH = 8  # used by predict and serve where no sweep was run
_FLAT = 1.02  # a doubled batch that gains less counts as no gain; after two of these, larger ones are left out
_NEAR_BEST = 0.95  # share of the highest throughput: settings above it are measured again, in turn
_EQUAL = 0.98  # share of the highest throughput: among settings above it the lower latency decides
_FINALISTS, _ROUNDS = 4, 3


@dataclass(frozen=True)
class Setting:
    """How to run a package: `--runtime -b -i`."""

    runtime: str
    batch: int
    instances: int

    def flags(self) -> str:
        return f"--runtime {self.runtime} -b {self.batch} -i {self.instances}"


@dataclass(frozen=True)
class Point:
    """A setting and its measurements; the latency, in ms, is the 95th percentile of a request."""

    setting: Setting
    throughput: float  # images/s
    latency_ms: float


@dataclass(frozen=True)
class Sweep:
    """The outcome of a sweep."""

    points: tuple[Point, ...]
    best: Point
    max_latency: float | None  # ms

    def frontier(self) -> frozenset[Setting]:
        """Return the Pareto-optimal settings: no other has both more throughput and a lower latency."""
        return frozenset(
            point.setting
            for point in self.points
            if not any(
                other.throughput > point.throughput and other.latency_ms <= point.latency_ms for other in self.points
            )
        )


def sweep(package: Package, runtime: Runtime, max_latency: float | None, seconds: float = SECONDS) -> Sweep:
    """Measure a package under one setting after the other, and the best of them again, in turn.

    Args:
        package: what to run.
        runtime: `AUTO` for all that are installed and fit for the package.
        max_latency: ms that 95% of the requests must stay under; None: any.
        seconds: of each measurement.

    Raises:
        DataError: no setting stays under the latency.
        PipelineError: a runtime fails.
    """
    runtimes = fit_runtimes(package) if runtime is Runtime.AUTO else [choose(runtime)]
    spec = package.preprocess()
    count = len(runtimes) * len(BATCHES) * len(_instances())
    with progress_bar(count, "sweep", "setting") as progress:

        def one(setting: Setting) -> Point:
            plan = Plan(
                package.model,
                Runtime(setting.runtime),
                spec,
                setting.batch,
                setting.instances,
                wide_weights=package.has_wide_weights,
            )
            recorder = Recorder()
            begun = measure(plan, Limit(duration_s=seconds), recorder)
            found = recorder.summarize(begun, steady=True)
            progress.update()
            return Point(setting, found.throughput, found.latency_ms["p95"])

        points: list[Point] = []
        for each in runtimes:
            for instances in _instances():
                points += _by_batch(one, each, instances, max_latency)
        finalists = near_best(points, max_latency)
        progress.total = progress.n + len(finalists) * _ROUNDS
        rounds = [[one(point.setting) for point in finalists] for _ in range(_ROUNDS if len(finalists) > 1 else 0)]
    again = {each[0].setting: _median(each) for each in zip(*rounds, strict=True)}
    points = [again.get(point.setting, point) for point in points]
    chosen = {point.setting for point in finalists}
    return Sweep(tuple(points), best_of([point for point in points if point.setting in chosen], None), max_latency)


def _instances() -> list[int]:
    """Return 1, 2, 4, ... up to the cores; further requests would only wait."""
    cores = hardware.available_cores()
    return sorted({*(1 << power for power in range(cores.bit_length()) if 1 << power <= cores), cores})


def _by_batch(
    one: Callable[[Setting], Point], runtime: Runtime, instances: int, max_latency: float | None
) -> Iterator[Point]:
    """Yield a point for each batch while larger ones may be better."""
    best, flat = 0.0, 0
    for batch in BATCHES:
        point = one(Setting(runtime.value, batch, instances))
        yield point
        flat = 0 if point.throughput > _FLAT * best else flat + 1
        best = max(best, point.throughput)
        if flat == 2 or (max_latency is not None and point.latency_ms > max_latency):
            return


def _median(points: Sequence[Point]) -> Point:
    throughput, latency = (median(getattr(point, key) for point in points) for key in ("throughput", "latency_ms"))
    return Point(points[0].setting, throughput, latency)


def near_best(points: Sequence[Point], max_latency: float | None) -> list[Point]:
    """Return the few settings that may be the best: within the latency, and near the highest throughput.

    Raises:
        DataError: none is within the latency.
    """
    allowed = [point for point in points if max_latency is None or point.latency_ms <= max_latency]
    if not allowed:
        fastest = min(points, key=lambda point: point.latency_ms)
        raise DataError(
            f"--max_latency {max_latency:g}: no setting answers in that time here; the quickest "
            f"({fastest.setting.flags()}) takes {fastest.latency_ms:.1f} ms"
        )
    most = max(point.throughput for point in allowed)
    near = sorted((point for point in allowed if point.throughput >= _NEAR_BEST * most), key=lambda p: -p.throughput)
    return near[:_FINALISTS]


def best_of(points: Sequence[Point], max_latency: float | None) -> Point:
    """Return the highest throughput; of those about equal, the lowest latency."""
    allowed = near_best(points, max_latency)
    most = max(point.throughput for point in allowed)
    return min((p for p in allowed if p.throughput >= _EQUAL * most), key=lambda point: point.latency_ms)


def describe(found: Sweep) -> list[str]:
    """Return the table for people, with a bar for each setting, and the choice."""
    most = max(point.throughput for point in found.points)
    frontier = found.frontier()
    lines = ["runtime       -b   -i  images/s    p95 ms"]
    for point in found.points:
        setting = point.setting
        bar = "#" * max(1, round(40 * point.throughput / most))
        mark = "best" if setting == found.best.setting else "*" if setting in frontier else ""
        lines.append(
            f"{setting.runtime:12} {setting.batch:3}  {setting.instances:3}  {point.throughput:8.1f}  "
            f"{point.latency_ms:8.1f}  {bar} {mark}".rstrip()
        )
    limit = "" if found.max_latency is None else f" under {found.max_latency:g} ms"
    return [
        *lines,
        "* Pareto-optimal: none is both faster and of lower latency",
        f"best{limit}: {found.best.setting.flags()}: {found.best.throughput:.1f} images/s, "
        f"95% of requests within {found.best.latency_ms:.1f} ms",
    ]
