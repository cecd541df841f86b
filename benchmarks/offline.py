"""What the server is compared with: `bench` on tensors and `predict` on files, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import ParamSpec

from pipeline.packages.choice import runtime_for
from pipeline.packages.package import open_package
from pipeline.run.inputs import find_images
from pipeline.run.performance import Recorder
from pipeline.run.plan import Limit, Message, Plan, Request
from pipeline.run.predict import Classifier
from pipeline.run.runner import measure
from pipeline.runtimes.base import Runtime

_WARM = 8  # batches of `predict` before the clock starts

Args = ParamSpec("Args")


@dataclass(frozen=True)
class Load:
    """What one of them did, without loading the package."""

    rate: float  # images/s
    cpu_ms: float  # CPU time of an image


def apart(work: Callable[Args, Load], *args: Args.args, **kwargs: Args.kwargs) -> Load:
    """Return what a function of this module measures in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *args, **kwargs).result()


class _Clock(Recorder):
    """Notes images, wall time and CPU time at each request that ends."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[int, float, float]] = []

    def __call__(self, message: Message) -> None:
        super().__call__(message)
        if isinstance(message, Request):
            self.ends.append((message.images, time.perf_counter(), time.process_time()))


def measure_bench(prefix: Path, batch: int, instances: int, runtime: str, seconds: float) -> Load:
    """As `bench -b -i --runtime --duration`: one tensor, prepared before."""
    package = open_package(prefix)
    clock = _Clock()
    plan = Plan(
        model=package.model,
        runtime=runtime_for(package, Runtime(runtime)),
        spec=package.preprocess(),
        batch=batch,
        instances=instances,
        processes=1,
        wide_weights=package.has_wide_weights,
    )
    measure(plan, Limit(seconds), clock)
    first, *others = clock.ends[instances - 1 :]
    images = sum(count for count, _, _ in others)
    return Load(images / (others[-1][1] - first[1]), (others[-1][2] - first[2]) / images * 1000)


def measure_predict(prefix: Path, batch: int, runtime: str, images: Path, seconds: float) -> Load:
    """As `predict --runtime`: files read, decoded and prepared, in batches."""
    files = cycle(find_images([images])[:200])
    with Classifier(prefix, runtime=runtime, batch=batch) as classifier:
        answers = classifier.predict(files)
        list(islice(answers, _WARM * batch))
        begun, cpu, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() < begun + seconds:
            count += len(list(islice(answers, batch)))
        passed, cpu = time.perf_counter() - begun, time.process_time() - cpu
        answers.close()
    return Load(count / passed, cpu / count * 1000)
