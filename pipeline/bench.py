"""Bench: throughput and latency of a package, and its answers to the images of a datalist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipeline import hardware, results
from pipeline.config.vdsp import PreprocessSpec, difference, load_vdsp, to_vdsp_dict
from pipeline.data.npz import read_datalist
from pipeline.errors import ConfigError
from pipeline.package import Package, check_fits
from pipeline.progress import progress_bar
from pipeline.runner import Limit, Message, Plan, Ready, Request, StageTimes, infer_samples, measure
from pipeline.runtimes.base import Runtime, choose

_PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, kw_only=True)
class Load:
    """How hard to drive the model: `-b -i -p --runtime`."""

    batch: int = 1
    instances: int = 1
    processes: int = 1
    runtime: Runtime = Runtime.AUTO

    def __post_init__(self) -> None:
        for flag, value in (("-b", self.batch), ("-i", self.instances), ("-p", self.processes)):
            if not 1 <= value <= 1024:
                raise ConfigError(f"{flag}: must be in 1..1024, got {value}")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a run measured. Latency is of one request of `batch` images, from its submission, in ms."""

    images: int
    seconds: float
    throughput: float  # images a second
    latency_ms: dict[str, float]  # min, mean, p50, ..., max
    workers: list[dict[str, Any]]  # runtime, version, streams and threads of each process
    stage_seconds: dict[str, float] | None = None  # accuracy run: read, preprocess, infer, write, over all threads


class _Recorder:
    """Collects what the workers report; moves the progress bar by finished images."""

    def __init__(self, progress: tqdm[Any]) -> None:
        self._progress = progress
        self.ready: list[Ready] = []
        self.requests: list[Request] = []
        self.stages: list[StageTimes] = []

    def __call__(self, message: Message) -> None:
        if isinstance(message, Ready):
            self.ready.append(message)
            self._progress.unpause()
        elif isinstance(message, StageTimes):
            self.stages.append(message)
        else:
            self.requests.append(message)
            self._progress.update(message.images)


def resolve_preprocess(package: Package, vdsp_params: str | None) -> tuple[PreprocessSpec, list[str]]:
    """Return the preprocessing of a run, the package's own or `--vdsp_params`, and what the user should know of it.

    Raises:
        PipelineError: the file is wrong, or prepares images of another size than the package takes.
    """
    spec = package.preprocess()
    if vdsp_params is None:
        return spec, []
    given = load_vdsp(vdsp_params)
    check_fits(package, given, vdsp_params)
    differs = difference(spec, given)
    notes = [f"{vdsp_params} differs from the preprocessing the package was calibrated with: {differs}"]
    return given, notes if differs else []


def check_shape(package: Package, shape: Sequence[int] | None) -> None:
    """Raise ConfigError if `-s` states another input shape than the package's."""
    if shape is not None and tuple(shape) != package.input_chw:
        raise ConfigError(
            f"-s {list(shape)}: {package.prefix} takes {list(package.input_chw)}; leave -s out, or build at that size"
        )


def run_performance(package: Package, load: Load, spec: PreprocessSpec, limit: Limit) -> Figures:
    """Measure throughput and latency on prepared synthetic images, `load.instances` requests always in flight."""
    plan = _plan(package, load, spec)
    total = None if limit.iterations is None else limit.iterations * load.batch
    with progress_bar(total, f"bench {package.name}", "img") as progress:
        recorder = _Recorder(progress)
        begun = measure(plan, limit, recorder)
    return _figures(recorder, begun, None if limit.iterations else begun + limit.duration_s)


def run_accuracy(package: Package, load: Load, spec: PreprocessSpec, datalist: Path, out: Path) -> Figures | None:
    """Write the package's answer to every image of a datalist; see `results` for the folder.

    Returns:
        What was measured; None if an earlier run had left no image to do.
    """
    images = read_datalist(datalist)
    plan = _plan(package, load, spec)
    run = {
        "package": str(package.prefix.absolute()),
        "model_sha256": package.digest,
        "runtime": plan.runtime.value,
        "preprocess": to_vdsp_dict(spec),
        "datalist": str(datalist.absolute()),
    }
    return write_results(plan, run, images, out, f"results of {package.name}")


def write_results(plan: Plan, run: dict[str, Any], images: Sequence[Path], out: Path, what: str) -> Figures | None:
    """Infer the images into a results folder, going on where an interrupted run with the same facts stopped."""
    with results.open_run(out, run, images) as samples:
        missing = sum(not sample.result.exists() for sample in samples)
        with progress_bar(len(samples), what, "img", done=len(samples) - missing) as progress:
            recorder = _Recorder(progress)
            begun = infer_samples(plan, samples, recorder)
    return _figures(recorder, begun, None) if recorder.requests else None


def _plan(package: Package, load: Load, spec: PreprocessSpec) -> Plan:
    return Plan(
        model=package.model,
        runtime=choose(load.runtime),
        spec=spec,
        batch=load.batch,
        instances=load.instances,
        processes=load.processes,
    )


def _figures(recorder: _Recorder, begun: float, until: float | None) -> Figures:
    """Condense a run. The pipe is full up to `until`; requests that finish later ran beside idle cores.

    At least the requests of the first rounds count, however long they took.
    """
    requests = sorted(recorder.requests, key=lambda request: request.finished)
    streams = sum(ready.placement.streams for ready in recorder.ready)
    counted = requests
    if until is not None:
        last_started = max(request.submitted for request in requests)
        counted = [r for r in requests if r.finished <= max(until, last_started)] or requests
        # Streams finish nearly together: a count that splits a round would be wrong by part of a round.
        counted = counted[: len(counted) // streams * streams] or counted
    seconds = counted[-1].finished - begun
    images = sum(request.images for request in counted)
    stages = None
    if recorder.stages:
        totals = np.array([list(asdict(times).values()) for times in recorder.stages]).sum(axis=0)
        stages = {name: round(float(total), 3) for name, total in zip(asdict(recorder.stages[0]), totals, strict=True)}
    return Figures(
        images=images,
        seconds=round(seconds, 3),
        throughput=round(images / seconds, 3),
        latency_ms=_latency(np.array([r.finished - r.submitted for r in counted]) * 1e3),
        workers=[{"runtime": r.runtime, "version": r.version, **asdict(r.placement)} for r in recorder.ready],
        stage_seconds=stages,
    )


def _latency(latency_ms: npt.NDArray[np.float64]) -> dict[str, float]:
    values = {"min": latency_ms.min(), "mean": latency_ms.mean()}
    values |= {f"p{rank}": np.percentile(latency_ms, rank) for rank in _PERCENTILES}
    values["max"] = latency_ms.max()
    return {name: round(float(value), 3) for name, value in values.items()}


def report(package: Package, load: Load, performance: Figures | None, accuracy: Figures | None) -> dict[str, Any]:
    """Return everything of a bench as plain data, for `--json`."""
    return {
        "package": str(package.prefix),
        "model_sha256": package.digest,
        "sample": package.uses_sample,
        "machine": hardware.describe(),
        "load": {**asdict(load), "runtime": choose(load.runtime).value},
        "performance": asdict(performance) if performance else None,
        "accuracy_run": asdict(accuracy) if accuracy else None,
    }


def describe(figures: Figures, title: str) -> list[str]:
    """Return the lines that people read."""
    worker = figures.workers[0]
    streams = sum(w["streams"] for w in figures.workers)
    threads = sum(w["threads"] for w in figures.workers)
    latency = "  ".join(f"{name} {value:.1f}" for name, value in figures.latency_ms.items())
    lines = [
        f"{title}: {figures.throughput:.1f} images/s ({figures.images} images in {figures.seconds:.1f} s)",
        f"latency of a request, ms: {latency}",
        f"ran on {worker['runtime']} {worker['version']}, {len(figures.workers)} process(es), {streams} stream(s), "
        f"{threads} thread(s); {hardware.cpu_name()}, {hardware.available_cores()} cores, "
        f"{', '.join(hardware.instruction_sets()) or 'no int8 instructions known'}",
    ]
    if figures.stage_seconds:
        spent = "  ".join(f"{name} {seconds:.1f}" for name, seconds in figures.stage_seconds.items())
        lines.append(f"thread seconds in: {spent} (infer includes waiting for a stream)")
    return lines
