"""The page of a sweep: throughput over latency, and every setting that was tried."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.host import hardware
from pipeline.packages.package import Package
from pipeline.reports import markup
from pipeline.run.sweep import Sweep


def write(package: Package, found: Sweep, path: Path) -> None:
    """Write the page; raises DataError where it cannot be written."""
    markup.write(path, f"{package.name}: throughput and latency", _body(package, found))


def _body(package: Package, found: Sweep) -> Iterator[str]:
    yield f"<h1>{markup.text(package.name)}: throughput and latency</h1>"
    best = found.best
    limit = "" if found.max_latency is None else f" of those under {found.max_latency:g} ms"
    yield f"<p>Best{limit}: <b>{markup.text(best.setting.flags())}</b>, {best.throughput:.1f} images/s, "
    yield f"95% of the requests answered in {best.latency_ms:.1f} ms.</p>"
    machine = f"{hardware.cpu_name()}, {hardware.available_cores()} cores, {', '.join(hardware.instruction_sets())}"
    yield f"<p>{markup.text(machine)}</p>"
    yield markup.curve(found.points)
    frontier = found.frontier()
    rows = [
        [
            point.setting.runtime,
            str(point.setting.batch),
            str(point.setting.instances),
            f"{point.throughput:.1f}",
            f"{point.latency_ms:.1f}",
            "yes" if point.setting in frontier else "",
        ]
        for point in sorted(found.points, key=lambda point: -point.throughput)
    ]
    titles = ["runtime", "images per request", "requests in flight", "images/s", "p95, ms", "Pareto-optimal"]
    yield "<h2>Everything tried</h2>" + markup.table(titles, rows)
    yield markup.built(package)
