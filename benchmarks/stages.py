"""CPU seconds of a build, stage by stage, beside those of one float32 pass over the same images.

    python benchmarks/stages.py torchvision_resnet18.yaml --weights W.pth --dataset DIR

CPU seconds are user and system time of this process and of its children: other work on the machine counts little. The
float32 pass decodes and prepares each image and runs the exported model on one thread, in the runtime that needs less.

`beside_nncf.py` measures what a build takes from an ONNX model, and what NNCF takes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import exit_code
from process_cost import cpu_seconds, peak_mib

from pipeline import building
from pipeline.config.build_config import BuildConfig
from pipeline.config.build_file import load_build_file
from pipeline.data import preprocess
from pipeline.data.calibration_list import choose_evenly, read_calibration_list
from pipeline.host.hardware import collect_garbage_rarely, keep_freed_memory
from pipeline.runtimes.opening import installed_runtimes, open_backend, place
from pipeline.stages.artefact_names import CALIBRATION, MODEL
from pipeline.stages.table import STAGES, Stage

ASIDE = ("sample", "prove", "trial")  # stages that are not counted in the sum: fitting a sample, proof and trial
REST = "rest"  # of the process: imports, and what lies between the stages


@dataclass(frozen=True)
class Spent:
    cpu: float  # seconds
    wall: float
    peak: float  # MiB, of the process up to here


@contextmanager
def spending(name: str, spent: dict[str, Spent], *, shown: bool = True) -> Iterator[None]:
    cpu, wall = cpu_seconds(), time.perf_counter()
    yield
    spent[name] = Spent(cpu_seconds() - cpu, time.perf_counter() - wall, peak_mib())
    if shown:
        print(
            f"{name:<12} {spent[name].cpu:7.1f} s CPU {spent[name].wall:7.1f} s {spent[name].peak:6.0f} MiB", flush=True
        )


def timed(stage: Stage[Any], spent: dict[str, Spent], *, shown: bool = True) -> Stage[Any]:
    """Return a stage that says what it took, and puts it into `spent`."""

    def run(settings: Any, inputs: Mapping[str, Path], out: Path) -> None:
        with spending(stage.name, spent, shown=shown):
            stage.run(settings, inputs, out)

    return replace(stage, run=run)


def float_pass(cfg: BuildConfig, stages: Mapping[str, Path], spent: dict[str, Spent], count: int) -> float:
    """Return the CPU seconds of a pass over all images: of decoding, and of the runtime that needs less.

    Args:
        count: images that are run; the seconds are scaled to all of them.
    """
    cropped = replace(cfg.preprocess, resize_hw=None, crop_yx=None)  # of prepared images: what is left is to normalise
    listed = read_calibration_list(stages["calibset"] / CALIBRATION)
    samples = [listed[index] for index in choose_evenly(len(listed), count)]
    with spending("decoding", spent):
        images = [preprocess.load(cfg.preprocess, each.source.content(), raw=True) for each in samples]
    needed = []
    for runtime in installed_runtimes():
        with open_backend(runtime, stages["export"] / MODEL, batch=1, placement=place(1, 1)) as backend:
            with spending(runtime.value, spent):
                for image in images:
                    backend.infer(preprocess.apply(cropped, image)[None])
            needed.append(spent[runtime.value].cpu)
    return (spent["decoding"].cpu + min(needed)) * len(listed) / len(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--weights")
    parser.add_argument("--dataset")
    parser.add_argument("--floor-images", type=int, default=1000, help="of the float32 pass, scaled to all images")
    parser.add_argument("--workspace", type=Path, help="kept; default: a temporary folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    more = [f"frontend.checkpoint={args.weights}"] if args.weights else []
    more += [f"dataset.path={args.dataset}"] if args.dataset else []
    with tempfile.TemporaryDirectory() as folder:
        workspace = args.workspace or Path(folder)
        cfg = load_build_file(args.config, [*more, f"workspace.path={workspace}", *args.set])
        measure(cfg, args.floor_images)


def measure(cfg: BuildConfig, floor_images: int) -> None:
    """Build; print what each stage takes, and the floor."""
    spent: dict[str, Spent] = {}
    building.STAGES = tuple(timed(stage, spent) for stage in STAGES)  # type: ignore[misc]
    collect_garbage_rarely()  # as the command, and below
    keep_freed_memory()
    stages = building.build(cfg).stages
    whole = cpu_seconds()
    rest = whole - sum(each.cpu for each in spent.values())
    total = sum(each.cpu for name, each in spent.items() if name not in ASIDE) + rest
    floor = float_pass(cfg, stages, spent, floor_images)
    print(f"imports and what lies between {rest:.1f} s; floor {floor:.1f} s; build {total:.1f} s, {total / floor:.2f}x")


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
