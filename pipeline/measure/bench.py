"""Bench: throughput and latency of a package, and its answers to the images of a datalist."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config.spec_comparison import difference
from pipeline.config.vdsp import PreprocessSpec, load_vdsp, to_vdsp_dict
from pipeline.data.npz import find_decoding, read_datalist
from pipeline.data.storage import Location, location
from pipeline.errors import ConfigError, DataError
from pipeline.host.cluster import Cluster
from pipeline.measure.bench_options import BenchOptions, FilePath
from pipeline.measure.bench_result import BenchResult, SpeedComparison, describe
from pipeline.measure.load import Load, choose_load
from pipeline.packages.choice import runtime_for
from pipeline.packages.package import Package, check_fits, open_package
from pipeline.run import results as results_folder
from pipeline.run.performance import Performance, Recorder
from pipeline.run.plan import Limit, Plan
from pipeline.run.runner import measure
from pipeline.terminal import console
from pipeline.terminal.progress import progress_bar

_COMPARED_ROUNDS = 3


def bench(
    package: Package | FilePath | None = None,
    options: BenchOptions | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> BenchResult:
    """Measure how fast a package is on this machine, and write its answers to images.

    >>> measured = pipeline.bench(options=pipeline.BenchOptions(batch=4, instances=2, iterations=20))
    >>> measured.speed.images
    80
    >>> sorted(measured.speed.latency_ms)
    ['max', 'mean', 'min', 'p50', 'p90', 'p95', 'p99']

    Args:
        package: a package or its path, as of `open_package`; None: the one built last under deploy_weights/.
        options: what is measured and answered; None: the speed, with the defaults of `BenchOptions`.
        say: gets the lines that the command prints, each as soon as it is known.

    Returns:
        What was measured; `as_dict` gives it as plain data.

    Raises:
        PipelineError: the options do not fit the package or this machine.
    """
    options = options or BenchOptions()
    package = package if isinstance(package, Package) else open_package(package)
    check_shape(package, options.shape)
    spec, notes = resolve_preprocess(package, options.vdsp_params)
    load, found = choose_load(package, options)
    result = BenchResult(package=package, load=load, notes=(*notes, *found), cluster=options.cluster)
    answers = _find_answers(package, options)
    say(package.heading)
    for note in result.notes:
        say(f"note: {note}")
    if options.speed:
        result = _measure_speed(result, spec, options, say)
    if answers is not None:
        result = _answer(result, spec, answers, say)
    return result


def _find_answers(package: Package, options: BenchOptions) -> tuple[Path, Location] | None:
    """Return the datalist to answer and the folder for that; None where nothing is to be answered.

    Raises:
        PipelineError: they cannot be read or written, before the minutes that a performance run may take.
    """
    if options.datalist is None and options.results is None:
        return None
    listed = package.workspace_file("datalist") if options.datalist is None else Path(options.datalist)
    if listed is None:
        raise ConfigError("--path_output: there are no images to answer; give --datalist FILE (image2npz makes it)")
    out = location("output" if options.results is None else options.results)
    read_datalist(listed)
    results_folder.check_folder(out)
    return listed, out


def _measure_speed(
    result: BenchResult, spec: PreprocessSpec, options: BenchOptions, say: Callable[[str], None]
) -> BenchResult:
    """Return the result with throughput and latency on synthetic images; with `options.reference`, float32's beside."""
    if options.reference:
        comparison = run_comparison(result.package, result.load, spec, options.limit)
        say("\n".join([*describe(comparison.package[-1], "performance, last round"), str(comparison)]))
        return replace(result, comparison=comparison)
    performance = run_performance(result.package, result.load, spec, options.limit)
    say("\n".join(describe(performance, "performance")))
    return replace(result, performance=performance)


def _answer(
    result: BenchResult, spec: PreprocessSpec, answers: tuple[Path, Location], say: Callable[[str], None]
) -> BenchResult:
    """Return the result with the run over a datalist, whose answers are in the folder."""
    datalist, folder = answers
    accuracy_run = run_accuracy(result.package, result.load, spec, datalist, folder, result.cluster)
    if accuracy_run is not None:
        shown = result.speed if result.has_speed else None
        say("\n".join(describe(accuracy_run, "from npz to results", result.cluster, shown)))
    say(f"results in {folder}/")
    return replace(result, accuracy_run=accuracy_run, results=folder)


def resolve_preprocess(package: Package, vdsp_params: FilePath | None) -> tuple[PreprocessSpec, list[str]]:
    """Return the preprocessing of a run, the package's own or `--vdsp_params`, and what the user should know of it.

    Raises:
        PipelineError: the file is wrong, or prepares images of another size than the package takes.
    """
    spec = package.preprocess()
    if vdsp_params is None:
        return spec, []
    vdsp_params = os.fspath(vdsp_params)
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
