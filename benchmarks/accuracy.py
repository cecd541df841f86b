"""One network quantized by this pipeline and by other tools: what each costs, in accuracy and in time.

    pip install '.[benchmarks]'
    python benchmarks/accuracy.py torchvision_resnet18.yaml --weights W.pth --dataset DIR --evaluation DIR

All start from the same float32 ONNX model and see the same calibration images, prepared by `pipeline.data.preprocess`.
Each is made in a process of its own, whose seconds and peak memory are measured from outside. Tools beside ONNX Runtime
and NNCF have an environment each (`peers/README.md`), given by `--peer quark=/path/to/python`.
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
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from common import FAULT, exit_code
from judging import BATCH, EXACT, RUNTIMES, STREAMS, Models, Row, evaluate
from peer_tools import PEERS, make_by_peer, read_interpreters, rows_of
from quantizers import EITHER, ROWS, Made, Task, float32_model, make_ours

from pipeline.config.build_config import BuildConfig
from pipeline.config.build_file import load_build_file
from pipeline.data.imagenet import Sample, list_dataset, list_images
from pipeline.errors import BackendError, ConfigError
from pipeline.host import hardware
from pipeline.packages.package import Package, open_package

OURS = "ours"


@dataclass(frozen=True)
class Cost:
    """One quantized model and what making it took: the whole process, imports included."""

    name: str
    made: Made
    seconds: float | None
    cpu_seconds: float | None  # user and system, of all its processes
    peak_memory_mib: float | None  # of the largest process


def read_config(args: argparse.Namespace) -> BuildConfig:
    flags = {"frontend.checkpoint": args.weights, "dataset.path": args.dataset, "workspace.path": args.workspace}
    extra = {key: str(value) for key, value in flags.items() if value is not None}
    return load_build_file(args.config, args.set, extra=extra)


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
        made = make_ours(read_config(args), args.set)
    else:
        package = open_package(Path(args.make[2]))
        task = Task(float32_model(package), package, args.calibration_images, args.ort_percentile_images, out)
        made = (
            make_by_peer(name, task, read_interpreters(args.peer), args.peer_options)
            if name in PEERS
            else ROWS[name][0](task)
        )
    (out / "made.json").write_text(json.dumps(asdict(made)), encoding="utf-8")


def make_apart(argv: Sequence[str], name: str, folder: Path, *prefix: str) -> Cost:
    """Make one model in a process of its own; one that an earlier run left in `folder` is taken as it is.

    Raises:
        BackendError: it failed; why stands above.
    """
    out = folder / name
    kept = out / "cost.json"
    if kept.is_file():
        found = json.loads(kept.read_text(encoding="utf-8"))
        return Cost(**{**found, "made": Made(**found["made"])})
    out.mkdir(exist_ok=True)
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
    spent = (seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit)
    cost = Cost(name, made, *(spent if made.complete else (None, None, None)))
    kept.write_text(json.dumps(asdict(cost)), encoding="utf-8")
    return cost


TITLES = "model|images|seconds|CPU s|MiB|runtime|top-1 %|drop|p|agree|KL|SQNR dB|img/s|x"
LEGEND = (
    "images: of the calibration; seconds, CPU s, MiB (peak): of what made the model, - where part was done before",
    "drop (points), exact McNemar p, same answers, KL divergence (nats), logit SQNR: against float32 in openvino",
    f"x: over float32 in openvino by CPU time, batch {BATCH}, {STREAMS} streams, in turn, medians of all rounds",
)


def cells(row: Row, cost: Cost | None, images: int) -> list[str]:
    calibrated = str(cost.made.images) if cost else "-"
    seconds = f"{cost.seconds:.0f}" if cost and cost.seconds else "-"
    cpu_seconds = f"{cost.cpu_seconds:.0f}" if cost and cost.cpu_seconds else "-"
    memory = f"{cost.peak_memory_mib:.0f}" if cost and cost.peak_memory_mib else "-"
    sqnr = "-" if row.sqnr_db is None else f"{row.sqnr_db:.1f}"
    drop = [f"{row.top1:.2f}", f"{row.drop:+.2f}", f"{row.mcnemar_p:.2g}", f"{row.agreeing}/{images}"]
    speed = [
        "-" if each is None else f"{each:.{digits}f}"
        for each, digits in ((row.images_per_s, 1), (row.times_float32, 2))
    ]
    return [row.name, calibrated, seconds, cpu_seconds, memory, row.runtime, *drop, f"{row.kl:.5f}", sqnr, *speed]


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
    interpreters = read_interpreters(args.peer)
    rows: list[str] = args.rows.split(",") if args.rows else [OURS, *ROWS, *rows_of(interpreters)]
    unknown = [name for name in rows if name not in (OURS, *ROWS, *PEERS)]
    if unknown:
        raise ConfigError(f"--rows: unknown row {unknown[0]!r}; expected some of {','.join((OURS, *ROWS, *PEERS))}")
    for name in rows:
        if name in PEERS and PEERS[name].tool not in interpreters:
            tool = PEERS[name].tool
            raise ConfigError(f"--rows: {name} needs --peer {tool}=PYTHON, see benchmarks/peers/README.md")
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
    for name in (*ROWS, *PEERS):
        if name in rows:
            costs.append(make_apart(argv, name, folder, str(package.prefix)))
    models: Models = {"float32": (float32_model(package), EITHER), OURS: (package.model, EITHER)}
    for cost in costs[1:]:
        runtimes = PEERS[cost.name].runtimes if cost.name in PEERS else ROWS[cost.name][1]
        models[cost.name] = Path(cost.made.model), runtimes
    if OURS not in rows:
        del models[OURS], costs[0]
    found = evaluate(models, package, samples, args)
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
    parser.add_argument(
        "--calibration-images", type=positive, metavar="N", default=300, help="all but ours, ort-percentile (300)"
    )
    parser.add_argument("--ort-percentile-images", type=positive, metavar="N", default=32, help="ort-percentile (32)")
    parser.add_argument("--rows", metavar="NAMES", help="separated by commas (all, and those of every --peer)")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="TOOL=PYTHON", help="see benchmarks/peers/README.md"
    )
    parser.add_argument("--peer-options", default="", metavar="TEXT", help='for its script, as "--iterations 500"')
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help="keep the models there, and take those that are there"
    )
    parser.add_argument("--rounds", type=int, metavar="N", default=5, help="of the throughput, 0: it is left out (5)")
    parser.add_argument(
        "--runtimes",
        type=runtimes,
        default=[name for name in RUNTIMES if name != EXACT],
        metavar="NAMES",
        help=f"some of {','.join(RUNTIMES)} (all but {EXACT}, which computes without int8 kernels)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the build file, for ours")
    parser.add_argument("--make", nargs="+", help=argparse.SUPPRESS)  # row, folder, package: one of our own processes
    return parser


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number > 0, got {text!r}")
    return int(text)


def runtimes(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(RUNTIMES):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(RUNTIMES)}, got {text!r}")
    return names


def make_or_run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    if args.make:
        make_in_this_process(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.workspace is None:
            args.workspace = Path(folder) / "workspace"
            argv = [*argv, "--workspace", str(args.workspace)]
        if args.models is not None:
            args.models.mkdir(parents=True, exist_ok=True)
        run(args, argv, args.models or Path(folder))


def main(argv: Sequence[str]) -> int:
    args = make_parser().parse_args(argv)
    return exit_code(lambda: make_or_run(args, argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
