"""Bench: throughput and latency of a package, and its answers to the images of a datalist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.config.vdsp import PreprocessSpec, difference, load_vdsp, to_vdsp_dict
from pipeline.data.npz import read_datalist
from pipeline.data.storage import Location
from pipeline.errors import ConfigError, DataError
from pipeline.host import hardware
from pipeline.host.cluster import Cluster
from pipeline.packages.choice import runtime_for
from pipeline.packages.package import Package, check_fits
from pipeline.run import results
from pipeline.run.figures import Figures, Recorder
from pipeline.run.runner import Limit, Plan, measure
from pipeline.runtimes.base import Runtime
from pipeline.terminal.progress import progress_bar

_COMPARED_ROUNDS = 3


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


@dataclass(frozen=True)
class Comparison:
    """A package beside float32, measured in turn so that a machine that changes its speed changes both."""

    precision: str  # of the package: int8, fp16, fp32
    package: tuple[Figures, ...]
    float32: tuple[Figures, ...]

    @property
    def ratios(self) -> list[float]:
        """How many times as fast the package was, round by round."""
        rounds = zip(self.package, self.float32, strict=True)
        return [round(package.throughput / float32.throughput, 3) for package, float32 in rounds]

    def as_dict(self) -> dict[str, Any]:
        return {
            self.precision: [asdict(figures) for figures in self.package],
            "float32": [asdict(figures) for figures in self.float32],
            "ratios": self.ratios,
            "median_ratio": median(self.ratios),
        }

    def __str__(self) -> str:
        package = median(figures.throughput for figures in self.package)
        float32 = median(figures.throughput for figures in self.float32)
        rounds = ", ".join(f"{ratio:.2f}" for ratio in self.ratios)
        return (
            f"{self.precision} {package:.1f} images/s, float32 {float32:.1f} images/s (medians); "
            f"{self.precision} is {median(self.ratios):.2f}x as fast (in turn: {rounds})"
        )


def resolve_preprocess(package: Package, vdsp_params: str | None) -> tuple[PreprocessSpec, list[str]]:
    """Return the preprocessing of a run, the package's own or `--vdsp_params`, and what the user should know of it.

    Raises:
        PipelineError: the file is wrong, or prepares images of another size than the package takes.
    """
    spec = package.preprocess()
    if vdsp_params is None:
        return spec, []
    given = load_vdsp(vdsp_params, package.input_chw[1:])
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


def check_accuracy_run(datalist: Path, out: Location) -> None:
    """Raise PipelineError if `run_accuracy` could not begin, before the minutes that a performance run may take."""
    read_datalist(datalist)
    results.check_folder(out)


def run_performance(package: Package, load: Load, spec: PreprocessSpec, limit: Limit) -> Figures:
    """Measure throughput and latency on prepared synthetic images, `load.instances` requests always in flight."""
    return _measure(_plan(package, load, spec), limit, package.name)


def run_comparison(package: Package, load: Load, spec: PreprocessSpec, limit: Limit) -> Comparison:
    """Measure the package and the build's float32 model in turn, the same load on both.

    Raises:
        DataError: the float32 model is not on this machine.
    """
    model = package.workspace_file("float32_model")
    if model is None:
        raise DataError(f"--reference: the float32 model of {package.prefix} is not here; build it on this machine")
    plan = _plan(package, load, spec)
    measured, float32 = [], []
    for number in range(1, _COMPARED_ROUNDS + 1):
        measured.append(_measure(plan, limit, f"{package.precision} {number}/{_COMPARED_ROUNDS}"))
        float32.append(
            _measure(replace(plan, model=model, wide_weights=False), limit, f"float32 {number}/{_COMPARED_ROUNDS}")
        )
    return Comparison(package.precision, tuple(measured), tuple(float32))


def _measure(plan: Plan, limit: Limit, what: str) -> Figures:
    total = None if limit.iterations is None else limit.iterations * plan.batch
    with progress_bar(total, what, "img") as progress:
        recorder = Recorder(progress)
        begun = measure(plan, limit, recorder)
    return recorder.figures(begun, steady=limit.iterations is None)


def run_accuracy(
    package: Package, load: Load, spec: PreprocessSpec, datalist: Path, out: Location, cluster: Cluster | None = None
) -> Figures | None:
    """Write the package's answer to every image of a datalist; see `results` for the folder.

    Returns:
        What was measured; None if an earlier run had left no image to do.
    """
    images = read_datalist(datalist)
    plan = _plan(package, load, spec)
    run = {
        "package": str(package.prefix.absolute()),
        "precision": package.precision,
        "model_sha256": package.digest,
        "sample": package.uses_sample,
        "runtime": plan.runtime.value,
        "preprocess": to_vdsp_dict(spec),
        "datalist": str(datalist.absolute()),
    }
    return results.write_results(plan, run, images, out, f"results of {package.name}", cluster)


def _plan(package: Package, load: Load, spec: PreprocessSpec) -> Plan:
    return Plan(
        model=package.model,
        runtime=runtime_for(package, load.runtime),
        spec=spec,
        batch=load.batch,
        instances=load.instances,
        processes=load.processes,
        wide_weights=package.has_wide_weights,
    )


def report(
    package: Package,
    load: Load,
    performance: Figures | None = None,
    comparison: Comparison | None = None,
    accuracy: Figures | None = None,
    cluster: Cluster | None = None,
) -> dict[str, Any]:
    """Return everything of a bench as plain data, for `--json`."""
    return {
        "package": str(package.prefix),
        "model_sha256": package.digest,
        "sample": package.uses_sample,
        "machine": hardware.describe(),
        "cluster": str(cluster) if cluster else None,
        "load": {**asdict(load), "runtime": runtime_for(package, load.runtime).value},
        "performance": asdict(performance) if performance else None,
        "comparison": comparison.as_dict() if comparison else None,
        "accuracy_run": asdict(accuracy) if accuracy else None,
    }


def describe(figures: Figures, title: str, cluster: Cluster | None = None) -> list[str]:
    """Return the lines that people read."""
    here = f"{hardware.cpu_name()}, {hardware.available_cores()} cores, " + (
        ", ".join(hardware.instruction_sets()) or "no int8 instructions known"
    )
    worker = figures.workers[0]
    streams = sum(w["streams"] for w in figures.workers)
    threads = sum(w["threads"] for w in figures.workers)
    latency = "  ".join(f"{name} {value:.1f}" for name, value in figures.latency_ms.items())
    lines = [
        f"{title}: {figures.throughput:.1f} images/s ({figures.images} images in {figures.seconds:.1f} s)",
        f"latency of a request, ms: {latency}",
        f"ran on {worker['runtime']} {worker['version']}, {len(figures.workers)} process(es), {streams} stream(s), "
        f"{threads} thread(s); {cluster or here}",
    ]
    if figures.stage_seconds:
        spent = "  ".join(f"{name} {seconds:.1f}" for name, seconds in figures.stage_seconds.items())
        lines.append(f"thread seconds in: {spent} (infer includes waiting for a stream)")
    return lines
