"""Where a package's time goes: the runtime's own profile, by layer and by kind of work."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.host import hardware
from pipeline.packages.choice import runtime_for
from pipeline.packages.package import Package
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.profile import LayerTime, Work, profile

RUNS = 20


def measure(package: Package, runtime: Runtime, batch: int, runs: int = RUNS) -> list[LayerTime]:
    """Return the time of each operation that the runtime executes for a package, the longest first.

    All cores work on one request, so times add up to the latency of a request.

    Raises:
        PipelineError: the runtime is not installed, or refuses the model.
    """
    dtype = np.uint8 if package.takes_pixels else np.float32
    images = np.zeros((batch, *package.input_chw), dtype)
    chosen, wide = runtime_for(package, runtime), package.has_wide_weights
    return profile(chosen, package.model, images, threads=hardware.available_cores(), runs=runs, wide_weights=wide)


def describe(times: Sequence[LayerTime], count: int) -> list[str]:
    """Return the tables for people: kinds of work, and the `count` longest operations."""
    total = sum(time.seconds for time in times) or 1.0
    kinds: dict[Work, float] = defaultdict(float)
    numbers: Counter[Work] = Counter()
    for time in times:
        kinds[time.work] += time.seconds
        numbers[time.work] += 1
    lines = [f"{1e3 * total:.2f} ms per request", "   share       ms  operations  kind"]
    lines += [
        f"{100 * seconds / total:7.1f}%  {1e3 * seconds:7.2f}  {numbers[work]:10}  {work.value}"
        for work, seconds in sorted(kinds.items(), key=lambda item: -item[1])
    ]
    lines.append("   share       ms  operation")
    lines += [
        f"{100 * time.seconds / total:7.1f}%  {1e3 * time.seconds:7.2f}  {time.operator} {time.name}: {time.kernel}"
        for time in times[:count]
    ]
    rest = times[count:]
    if rest:
        seconds = sum(time.seconds for time in rest)
        lines.append(f"{100 * seconds / total:7.1f}%  {1e3 * seconds:7.2f}  in {len(rest)} others")
    return lines


def as_dict(times: Sequence[LayerTime]) -> list[dict[str, Any]]:
    """Return all of it as plain data, for `--json`."""
    return [{**asdict(time), "work": time.work.value} for time in times]
