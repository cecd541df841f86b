"""CPU seconds and memory from a float32 ONNX model to an int8 one: this pipeline and NNCF, in turn.

    python benchmarks/beside_nncf.py --dataset DIR --turns 3 \\
        --network torchvision_resnet18.yaml=W18.pth --network torchvision_resnet50.yaml=W50.pth

Each network is exported once. Then every turn makes each of them by this pipeline, as its build file says and with
nearest rounding, and by NNCF with its defaults, from the same images: each in a process of its own, whose user and
system time it is, imports included; the proof of a build is left out, and no trial is made. NNCF comes with the extra
`benchmarks`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from common import exit_code
from process_cost import cpu_seconds, peak_mib

# Whatever else a process needs it imports itself: NNCF's does not pay for what a build imports, nor the other way.

ROWS = ("ours", "nearest", "nncf")


@dataclass(frozen=True)
class Network:
    """A network that is quantized from its ONNX model."""

    config: str  # the build file
    float32: Path
    settings: tuple[str, ...]  # KEY=VALUE


@dataclass(frozen=True)
class Made:
    cpu: float  # seconds
    peak: float  # MiB
    images: int


def apart(make: Callable[..., object], *arguments: object) -> object:
    """Return what a function returns in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(make, *arguments).result()


def export(config: str, weights: str, dataset: str, more: Sequence[str], folder: Path) -> Network:
    """Write the network of a build file as ONNX."""
    from pipeline.config.build_file import load_build_file
    from pipeline.prepare.export_model import Source, export_model

    given = [f"dataset.path={dataset}", *more]
    frontend = load_build_file(config, [f"frontend.checkpoint={weights}", *given]).frontend
    assert frontend.model is not None
    size = frontend.chw[1]
    source = Source(library=frontend.type.value, name=frontend.model, size=size, weights=Path(weights))
    path, _ = export_model(source, folder)
    from_onnx = ("frontend.type=onnx", "frontend.model=null", f"frontend.checkpoint={path}")
    return Network(config, path, (*given, *from_onnx))


def build(network: Network, workspace: Path, more: Sequence[str]) -> tuple[Made, Path]:
    """Return what a build took in this process, and the package's prefix."""
    from pipeline.host.hardware import collect_garbage_rarely, keep_freed_memory

    collect_garbage_rarely()  # as the command, and below
    from stages import ASIDE, Spent, timed

    from pipeline import building
    from pipeline.config.build_file import load_build_file
    from pipeline.proof import speed
    from pipeline.stages.table import STAGES

    os.environ[speed.SECONDS] = "0"  # no trial, which would be left out
    spent: dict[str, Spent] = {}
    building.STAGES = tuple(timed(stage, spent, shown=False) for stage in STAGES)  # type: ignore[misc]
    cfg = load_build_file(network.config, [*network.settings, f"workspace.path={workspace}", *more])
    keep_freed_memory()
    prefix = building.build(cfg).prefix
    cpu = cpu_seconds() - sum(each.cpu for name, each in spent.items() if name in ASIDE)
    return Made(cpu, peak_mib(), cfg.dataset.sampler.get_data_num), prefix


def quantize_by_nncf(network: Network, prefix: Path, folder: Path) -> Made:
    """Return what NNCF took in this process until its model was saved; the images are those of a build."""
    from quantizers import Task, make_by_nncf

    from pipeline.data.calibration_list import read_calibration_list
    from pipeline.packages.package import CALIBRATION, open_package

    package = open_package(prefix)
    listed = len(read_calibration_list(package.folder / CALIBRATION))
    made = make_by_nncf(Task(network.float32, package, listed, listed, folder))
    return Made(cpu_seconds(), peak_mib(), made.images)


def take_turn(network: Network, folder: Path) -> dict[str, Made]:
    """Make a network's int8 model in each way."""
    found: dict[str, Made] = {}
    prefix = folder
    for row, more in {"ours": [], "nearest": ["backend.quantize.weight_rounding=nearest"]}.items():
        found[row], prefix = apart(build, network, folder / row, more)  # type: ignore[misc]
        _show(network, row, found[row])
    found["nncf"] = apart(quantize_by_nncf, network, prefix, folder)  # type: ignore[assignment]
    _show(network, "nncf", found["nncf"])
    return found


def _show(network: Network, row: str, made: Made) -> None:
    line = f"{network.float32.stem:<24} {row:<8} {made.cpu:6.1f} s CPU, {made.images} images, {made.peak:.0f} MiB"
    print(line, flush=True)


def summarize(network: Network, turns: Sequence[dict[str, Made]]) -> None:
    print(f"{network.float32.stem}: medians of {len(turns)} turns, least to most")
    for row in ROWS:
        seconds = [turn[row].cpu for turn in turns]
        ratios = [turn[row].cpu / turn["nncf"].cpu for turn in turns]
        peak = max(turn[row].peak for turn in turns)
        print(
            f"  {row:<8} {median(seconds):6.1f} s ({min(seconds):.1f} to {max(seconds):.1f}), over NNCF "
            f"{median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}), {peak:.0f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="append", required=True, metavar="CONFIG=WEIGHTS", help="may be repeated")
    parser.add_argument("--dataset", required=True, metavar="DIR", help="calibration images")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        networks: list[Network] = []
        for given in args.network:
            config, _, weights = given.partition("=")
            made = apart(export, config, weights, args.dataset, args.set, Path(folder))
            networks.append(made)  # type: ignore[arg-type]
        turns: list[list[dict[str, Made]]] = [[] for _ in networks]
        for turn in range(args.turns):
            for network, found in zip(networks, turns, strict=True):
                with tempfile.TemporaryDirectory(dir=folder, prefix=f"turn_{turn}_") as scratch:
                    found.append(take_turn(network, Path(scratch)))
        for network, found in zip(networks, turns, strict=True):
            summarize(network, found)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
