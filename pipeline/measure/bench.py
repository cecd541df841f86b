"""Bench: throughput and latency of a package, and its answers to the images of a datalist."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config.spec_comparison import difference
from pipeline.config.vdsp import PreprocessSpec, load_vdsp, to_vdsp_dict
from pipeline.data.npz import find_decoding, read_datalist
from pipeline.data.storage import Location, Url, location
from pipeline.errors import ConfigError, DataError
from pipeline.host.cluster import Cluster
from pipeline.measure.bench_result import BenchResult, SpeedComparison, describe
from pipeline.measure.load import Load, choose_load
from pipeline.packages.choice import runtime_for
from pipeline.packages.package import Package, check_fits, open_package
from pipeline.run import results as results_folder
from pipeline.run.performance import Performance, Recorder
from pipeline.run.plan import Limit, Plan
from pipeline.run.runner import measure
from pipeline.runtimes.base import Runtime
from pipeline.terminal import console
from pipeline.terminal.progress import progress_bar

_COMPARED_ROUNDS = 3

FilePath = str | os.PathLike[str]


def bench(
    package: Package | FilePath | None = None,
    *,
    batch: int | None = None,
    instances: int | None = None,
    processes: int = 1,
    runtime: Runtime | str | None = None,
    shape: Sequence[int] | None = None,
    vdsp_params: FilePath | None = None,
    speed: bool = True,
    duration: float | None = None,
    iterations: int | None = None,
    reference: bool = False,
    datalist: FilePath | None = None,
    results: FilePath | Url | None = None,
    cluster: Cluster | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> BenchResult:
    """Measure how fast a package is on this machine, and write its answers to images.

    >>> measured = pipeline.bench(batch=4, instances=2, iterations=20)
    >>> measured.speed.images
    80
    >>> sorted(measured.speed.latency_ms)
    ['max', 'mean', 'min', 'p50', 'p90', 'p95', 'p99']

    Args:
        package: a package or its path, as of `open_package`; None: the one built last under deploy_weights/.
        batch: images per request.
        instances: requests in flight, over all processes.
        processes: worker processes.
        runtime: auto, openvino or onnxruntime. Where this, `batch` and `instances` are None, all three are what
            `bench --sweep` found best on this machine; else each that is None is auto, 1 and 1.
        shape: [C, H, W] that the package must take; None: any.
        vdsp_params: a preprocessing file in place of the package's own.
        speed: measure throughput and latency, on synthetic images.
        duration: seconds of that; None: 10.
        iterations: requests of that, in place of a time.
        reference: measure the build's float32 model too, in turn.
        datalist: a file of npz paths whose images are answered; None: the build's own evaluation images.
        results: folder of the answers; None: output/ where a `datalist` is given, else nothing is answered.
        cluster: where images are answered, in place of this machine.
        say: gets the lines that the command prints, each as soon as it is known.

    Returns:
        What was measured; `as_dict` gives it as plain data.

    Raises:
        PipelineError: the arguments do not fit each other, the package or this machine.
    """
    check_limits(speed, reference, duration, iterations)
    package = package if isinstance(package, Package) else open_package(package)
    check_shape(package, shape)
    spec, notes = resolve_preprocess(package, None if vdsp_params is None else os.fspath(vdsp_params))
    load, found = choose_load(package, batch=batch, instances=instances, processes=processes, runtime=runtime)
    result = BenchResult(package=package, load=load, notes=(*notes, *found), cluster=cluster)
    answers = _find_answers(package, datalist, results)
    say(package.heading)
    for note in result.notes:
        say(f"note: {note}")
    limit = Limit(Limit.duration_s if duration is None else duration, iterations)
    if speed:
        result = _measure_speed(result, spec, limit, reference=reference, say=say)
    if answers is not None:
        accuracy_run = run_accuracy(package, load, spec, *answers, cluster)
        if accuracy_run is not None:
            shown = result.speed if speed else None
            say("\n".join(describe(accuracy_run, "from npz to results", cluster, shown)))
        say(f"results in {answers[1]}/")
        result = replace(result, accuracy_run=accuracy_run, results=answers[1])
    return result


def check_limits(speed: bool, reference: bool, duration: float | None, iterations: int | None) -> None:
    """Raise ConfigError if the limits of a performance run are out of range, or there is none."""
    if iterations is not None and iterations < 1:
        raise ConfigError(f"--iterations: must be at least 1, got {iterations}")
    if duration is not None and not 0 < duration < float("inf"):
        raise ConfigError(f"--duration: must be above 0, got {duration}")
    given = {"reference": reference, "iterations": iterations, "duration": duration}
    unused = [flag for flag, value in given.items() if value]
    if unused and not speed:
        raise ConfigError(f"--{unused[0]}: a run over --datalist ends with its images; leave one of the two out")


def _find_answers(
    package: Package, datalist: FilePath | None, results: FilePath | Url | None
) -> tuple[Path, Location] | None:
    """Return the datalist to answer and the folder for that; None where nothing is to be answered.

    Raises:
        PipelineError: they cannot be read or written, before the minutes that a performance run may take.
    """
    if datalist is None and results is None:
        return None
    listed = package.workspace_file("datalist") if datalist is None else Path(datalist)
    if listed is None:
        raise ConfigError("--path_output: there are no images to answer; give --datalist FILE (image2npz makes it)")
    out = location("output" if results is None else results)
    read_datalist(listed)
    results_folder.check_folder(out)
    return listed, out


def _measure_speed(
    result: BenchResult, spec: PreprocessSpec, limit: Limit, *, reference: bool, say: Callable[[str], None]
) -> BenchResult:
    if reference:
        comparison = run_comparison(result.package, result.load, spec, limit)
        say("\n".join([*describe(comparison.package[-1], "performance, last round"), str(comparison)]))
        return replace(result, comparison=comparison)
    performance = run_performance(result.package, result.load, spec, limit)
    say("\n".join(describe(performance, "performance")))
    return replace(result, performance=performance)


def resolve_preprocess(package: Package, vdsp_params: str | None) -> tuple[PreprocessSpec, list[str]]:
    """Return the preprocessing of a run, the package's own or `--vdsp_params`, and what the user should know of it.

    Raises:
        PipelineError: the file is wrong, or prepares images of another size than the package takes.
    """
    spec = package.preprocess()
    if vdsp_params is None:
        return spec, []
    given = load_vdsp(vdsp_params, package.input_chw[1:], spec.preprocess_as)
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


def run_performance(package: Package, load: Load, spec: PreprocessSpec, limit: Limit) -> Performance:
    """Measure throughput and latency on prepared synthetic images, `load.instances` requests always in flight."""
    return _measure(_plan(package, load, spec), limit, package.name)


def run_comparison(package: Package, load: Load, spec: PreprocessSpec, limit: Limit) -> SpeedComparison:
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
    return SpeedComparison(package.precision, tuple(measured), tuple(float32))


def _measure(plan: Plan, limit: Limit, what: str) -> Performance:
    total = None if limit.iterations is None else limit.iterations * plan.batch
    with progress_bar(total, what, "img") as progress:
        recorder = Recorder(progress)
        begun = measure(plan, limit, recorder)
    return recorder.summarize(begun, steady=limit.iterations is None)


def run_accuracy(
    package: Package, load: Load, spec: PreprocessSpec, datalist: Path, out: Location, cluster: Cluster | None = None
) -> Performance | None:
    """Write the package's answer to every image of a datalist; see `results` for the folder.

    Returns:
        What was measured; None if an earlier run had left no image to do.
    """
    images = read_datalist(datalist)
    _check_decoding(images, spec)
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
    return results_folder.write_results(plan, run, images, out, f"results of {package.name}", cluster)


def _check_decoding(images: Sequence[Location], spec: PreprocessSpec) -> None:
    """Warn where the first image was decoded otherwise than the package's images are."""
    found = find_decoding(images[0]) if images and isinstance(images[0], Path) else None
    if found not in (None, spec.preprocess_as):
        wanted = spec.preprocess_as.value
        console.warning(
            f"note: {images[0]}: decoded as by {found.value}, this package wants {wanted}: images that EXIF turns "
            f"differ; make the npz files again by image2npz --preprocess_as {wanted}"
        )


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
