"""One network quantized by this pipeline, by ONNX Runtime and by NNCF: what each costs, in accuracy and in time.

    pip install '.[benchmarks]'
    python benchmarks/accuracy.py torchvision_resnet18.yaml --weights W.pth --dataset DIR --evaluation DIR

All start from the same float32 ONNX model and see the same calibration images, prepared by `pipeline.data.preprocess`.
Each is made in a process of its own, whose seconds and peak memory are measured from outside.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
from common import FAULT, exit_code, run_once
from quantizers import EITHER, ROWS, Float32, Made, Task, float32_model, make_ours

from pipeline.config.build_file import BuildConfig, load_build_file
from pipeline.data import preprocess
from pipeline.data.imagenet import Sample, list_dataset, list_images
from pipeline.errors import BackendError, ConfigError
from pipeline.host import hardware, isolated
from pipeline.measure.accuracy import mcnemar_p
from pipeline.packages.package import Package, open_package
from pipeline.quant.divergence import Divergence
from pipeline.runtimes.base import Backend, Batch, Runtime
from pipeline.runtimes.opening import open_backend, place
from pipeline.terminal.progress import progress_bar

BATCH, STREAMS = 22, 2
MOST_S = 600.0  # for opening and running a model once
ROUNDS = 5  # of the throughput, the model and float32 in turn
BURST_S = 2.0  # seconds of each turn
OURS = "ours"

Models = dict[str, tuple[Path, tuple[Runtime, ...]]]  # name: file, what can run it


@dataclass(frozen=True)
class Cost:
    """One quantized model and what making it took: the whole process, imports included."""

    name: str
    made: Made
    seconds: float | None
    peak_memory_mib: float | None  # of the largest process


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model in one runtime, beside float32 in OpenVINO."""

    name: str
    runtime: str
    top1: float  # %
    drop: float  # % points
    right_to_wrong: int
    wrong_to_right: int
    mcnemar_p: float
    agreeing: int
    kl: float
    sqnr_db: float | None  # None: no noise at all
    images_per_s: float
    times_float32: float


def read_config(args: argparse.Namespace) -> BuildConfig:
    flags = {"frontend.checkpoint": args.weights, "dataset.path": args.dataset, "workspace.path": args.workspace}
    return load_build_file(args.config, extra={key: str(value) for key, value in flags.items() if value is not None})


def list_evaluation(args: argparse.Namespace, cfg: BuildConfig, package: Package) -> list[Sample]:
    """Return the evaluation images: those of the build's own sample where no others are given."""
    suffix, ids = cfg.dataset.sampler.suffix, [known.id for known in package.classes()]
    folder = args.evaluation or next(cfg.workspace.path.glob(".cache/sample/*/evaluation"))
    samples = list(list_dataset(folder, suffix, args.val_label, ids).samples)
    count = min(args.evaluation_images or len(samples), len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]


def make_in_this_process(args: argparse.Namespace) -> None:
    """Make one model, and describe it in a file beside it."""
    name, out = args.make[0], Path(args.make[1])
    if name == OURS:
        made = make_ours(read_config(args))
    else:
        package = open_package(Path(args.make[2]))
        task = Task(float32_model(package), package, args.calibration_images, args.ort_percentile_images, out)
        made = ROWS[name][0](task)
    (out / "made.json").write_text(json.dumps(asdict(made)), encoding="utf-8")


def make_apart(argv: Sequence[str], name: str, folder: Path, *prefix: str) -> Cost:
    """Make one model in a process of its own.

    Raises:
        BackendError: it failed; why stands above.
    """
    out = folder / name
    out.mkdir()
    begun = time.perf_counter()
    command = [sys.executable, str(Path(__file__).resolve()), *argv, "--make", name, str(out), *prefix]
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode == FAULT:
        raise SystemExit(FAULT)
    if process.returncode:
        raise BackendError(f"row {name}: its process ended with {process.returncode}; leave it out with --rows")
    made = Made(**json.loads((out / "made.json").read_text(encoding="utf-8")))
    seconds = time.perf_counter() - begun
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return Cost(name, made, *((seconds, usage.ru_maxrss / unit) if made.complete else (None, None)))


def prepare_images(images: Sequence[Sample], package: Package, folder: Path) -> dict[str, Batch]:
    """Return the evaluation images [images, C, H, W] in each dtype that a model may take, mapped from files."""
    spec, shape = package.preprocess(), (len(images), *package.input_chw)
    mapped: dict[str, Batch] = {
        dtype: np.lib.format.open_memmap(folder / f"{dtype}.npy", mode="w+", dtype=dtype, shape=shape)
        for dtype in ("float32", "uint8")
    }
    with progress_bar(len(images), "evaluation images", "img") as progress:
        for index, image in enumerate(images):
            decoded = preprocess.decode(image.source.content())
            for dtype, array in mapped.items():
                array[index] = preprocess.prepare(spec, decoded, raw=dtype == "uint8")
            progress.update()
    return mapped


def answer(backend: Backend, prepared: dict[str, Batch], what: str) -> Float32:
    """Return the outputs, float32 [images, classes]."""
    images = prepared[backend.input.dtype]
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    outputs = []
    with progress_bar(len(images), what, "img") as progress, ThreadPoolExecutor(backend.placement.streams) as pool:
        for output in pool.map(backend.infer, batches):
            outputs.append(output)
            progress.update(len(output))
    return np.concatenate(outputs)


def images_per_second(backend: Backend, prepared: dict[str, Batch]) -> float:
    """Return the throughput of one burst: each stream's own rate, so that how they end together does not count."""

    images = prepared[backend.input.dtype]
    batch = np.ascontiguousarray(np.resize(images[:BATCH], (BATCH, *images.shape[1:])))

    def one_stream(_: int) -> float:
        begun, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - begun) < BURST_S:
            backend.infer(batch)
            done += len(batch)
        return done / spent

    streams = backend.placement.streams
    with ThreadPoolExecutor(streams) as pool:
        return sum(pool.map(one_stream, range(streams)))


def compare(
    name: str,
    backend: Backend,
    reference: Backend,
    images: dict[str, Batch],
    expected: Float32,
    truth: npt.NDArray[np.intp],
) -> Row:
    found = answer(backend, images, f"{name} in {backend.name}")
    divergence = Divergence()
    divergence.add(expected, found)
    wanted, given = expected.argmax(axis=1), found.argmax(axis=1)
    lost = int(((wanted == truth) & (given != truth)).sum())
    won = int(((wanted != truth) & (given == truth)).sum())
    rates = [(images_per_second(backend, images), images_per_second(reference, images)) for _ in range(ROUNDS)]
    return Row(
        name=name,
        runtime=backend.name,
        top1=100 * float((given == truth).mean()),
        drop=100 * (lost - won) / len(truth),
        right_to_wrong=lost,
        wrong_to_right=won,
        mcnemar_p=mcnemar_p(lost, won),
        agreeing=int((wanted == given).sum()),
        kl=divergence.kl,
        sqnr_db=divergence.sqnr_db if divergence.noise else None,
        images_per_s=median(rate for rate, _ in rates),
        times_float32=median(rate / float32 for rate, float32 in rates),
    )


def evaluate(models: Models, package: Package, samples: Sequence[Sample]) -> list[Row]:
    """Run every model in every runtime that can."""
    placement = place(STREAMS, hardware.available_cores())
    truth = np.array([sample.class_index for sample in samples], np.intp)
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        open_backend(Runtime.OPENVINO, float32_model(package), batch=BATCH, placement=placement) as reference,
    ):
        images = prepare_images(samples, package, Path(folder))
        expected = answer(reference, images, "float32 in openvino")
        for name, (model, runtimes) in models.items():
            for runtime in runtimes:
                if not survives(runtime, model, images):
                    continue
                with open_backend(runtime, model, batch=BATCH, placement=placement) as backend:
                    rows.append(compare(name, backend, reference, images, expected, truth))
    return rows


def survives(runtime: Runtime, model: Path, images: dict[str, Batch]) -> bool:
    """Tell whether a runtime runs a model, tried in a process of its own: some end theirs."""
    try:
        some = {kind: batch[:BATCH].copy() for kind, batch in images.items()}
        isolated.call(run_once, runtime, model, some, STREAMS, seconds=MOST_S)
    except (isolated.LostError, BackendError) as err:
        print(f"{model.name} in {runtime.value} is left out: it {err}", file=sys.stderr)
        return False
    return True


TITLES = "model|images|seconds|MiB|runtime|top-1 %|drop|p|agree|KL|SQNR dB|img/s|x"
LEGEND = (
    "images: of the calibration; seconds, MiB (peak): of the process that made the model, - where part was done before",
    "drop (points), exact McNemar p, same answers, KL divergence (nats), logit SQNR: against float32 in openvino",
    f"x: times as fast as float32 in openvino, batch {BATCH}, {STREAMS} streams, in turn, medians of {ROUNDS} rounds",
)


def cells(row: Row, cost: Cost | None, images: int) -> list[str]:
    calibrated = str(cost.made.images) if cost else "-"
    seconds = f"{cost.seconds:.0f}" if cost and cost.seconds else "-"
    memory = f"{cost.peak_memory_mib:.0f}" if cost and cost.peak_memory_mib else "-"
    sqnr = "-" if row.sqnr_db is None else f"{row.sqnr_db:.1f}"
    drop = [f"{row.top1:.2f}", f"{row.drop:+.2f}", f"{row.mcnemar_p:.2g}", f"{row.agreeing}/{images}"]
    speed = [f"{row.images_per_s:.1f}", f"{row.times_float32:.2f}"]
    return [row.name, calibrated, seconds, memory, row.runtime, *drop, f"{row.kl:.5f}", sqnr, *speed]


def table(rows: Sequence[Row], costs: Sequence[Cost], images: int) -> str:
    by_name = {cost.name: cost for cost in costs}
    lines = [TITLES.split("|"), *(cells(row, by_name.get(row.name), images) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def check(args: argparse.Namespace) -> list[str]:
    """Return the rows to make; find what is missing before minutes of work.

    Raises:
        PipelineError: an unknown row, a library that is not installed, no evaluation images.
    """
    rows: list[str] = args.rows.split(",")
    unknown = [name for name in rows if name not in (OURS, *ROWS)]
    if unknown:
        raise ConfigError(f"--rows: unknown row {unknown[0]!r}; expected some of {','.join((OURS, *ROWS))}")
    wanted = ["openvino", "onnxruntime", *(["nncf"] if any(name.startswith("nncf") for name in rows) else [])]
    absent = [name for name in wanted if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(f"{absent[0]} is not installed; run: pip install '.[benchmarks]'")
    cfg = read_config(args)
    if args.evaluation is not None:
        list_images(args.evaluation, cfg.dataset.sampler.suffix)
    elif not cfg.uses_sample:
        raise ConfigError("--evaluation is missing; without --weights, --dataset and it the build's own sample is used")
    if args.json is not None and not args.json.absolute().parent.is_dir():
        raise ConfigError(f"--json {args.json}: its folder does not exist")
    return rows


def run(args: argparse.Namespace, argv: Sequence[str], folder: Path) -> None:
    rows = check(args)
    costs = [make_apart(argv, OURS, folder)]
    package = open_package(Path(costs[0].made.model))
    samples = list_evaluation(args, read_config(args), package)
    for name in ROWS:
        if name in rows:
            costs.append(make_apart(argv, name, folder, str(package.prefix)))
    models: Models = {"float32": (float32_model(package), EITHER), OURS: (package.model, EITHER)}
    models |= {cost.name: (Path(cost.made.model), ROWS[cost.name][1]) for cost in costs[1:]}
    if OURS not in rows:
        del models[OURS], costs[0]
    found = evaluate(models, package, samples)
    print(f"{package.name}, {len(samples)} evaluation images; {machine()}\n\n{table(found, costs, len(samples))}\n")
    print("\n".join([*LEGEND, *(f"{cost.name}: {cost.made.settings}" for cost in costs)]))
    if args.json is not None:
        outcome = {
            "network": package.name,
            "evaluation_images": len(samples),
            "machine": hardware.describe(),
            "versions": versions(),
            "made": [asdict(cost) for cost in costs],
            "rows": [asdict(row) for row in found],
        }
        args.json.write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    names = ("openvino", "onnxruntime", "nncf")
    return {name: version(name) for name in names if importlib.util.find_spec(name) is not None}


def machine() -> str:
    libraries = ", ".join(f"{name} {number}" for name, number in versions().items())
    cores, sets = hardware.available_cores(), ", ".join(hardware.instruction_sets())
    return f"{libraries}; {hardware.cpu_name()}, {cores} cores, {sets}"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("config", metavar="CONFIG", help="a build file, or the name of one in build_configs/")
    parser.add_argument("--weights", metavar="FILE", help="without weights and images: the build's own sample")
    parser.add_argument("--dataset", type=Path, metavar="DIR", help="calibration images")
    parser.add_argument("--evaluation", type=Path, metavar="DIR", help="labelled images, others")
    parser.add_argument("--evaluation-images", type=positive, metavar="N", help="of them (all)")
    parser.add_argument("--val_label", type=Path, metavar="FILE", help="labels of a flat evaluation folder")
    parser.add_argument("--workspace", type=Path, metavar="DIR", help="keep the build there (a temporary folder)")
    parser.add_argument("--calibration-images", type=positive, metavar="N", default=300, help="ort-minmax, nncf* (300)")
    parser.add_argument("--ort-percentile-images", type=positive, metavar="N", default=32, help="ort-percentile (32)")
    parser.add_argument("--rows", default=",".join((OURS, *ROWS)), help="separated by commas (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file")
    parser.add_argument("--make", nargs="+", help=argparse.SUPPRESS)  # row, folder, package: one of our own processes
    return parser


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number > 0, got {text!r}")
    return int(text)


def make_or_run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    if args.make:
        make_in_this_process(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.workspace is None:
            args.workspace = Path(folder) / "workspace"
            argv = [*argv, "--workspace", str(args.workspace)]
        run(args, argv, Path(folder))


def main(argv: Sequence[str]) -> int:
    args = make_parser().parse_args(argv)
    return exit_code(lambda: make_or_run(args, argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
