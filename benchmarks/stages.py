"""CPU seconds of a build, stage by stage, beside those of one float32 pass over the same images.

    python benchmarks/stages.py torchvision_resnet18.yaml --weights W.pth --dataset DIR

CPU seconds are user and system time of this process and of its children: other work on the machine counts little. The
float32 pass decodes and prepares each image and runs the exported model on one thread, in the runtime that needs less.

With `--nncf TURNS`, what a build takes from the exported ONNX model to the package, also with nearest rounding, beside
what NNCF takes from the same model and images to its own: in turn, each in a process of its own, imports included.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import exit_code
from quantizers import ROWS, Task

from pipeline import building
from pipeline.config.build_config import BuildConfig
from pipeline.config.build_file import load_build_file
from pipeline.data import preprocess
from pipeline.data.calibration_list import choose_evenly, read_calibration_list
from pipeline.host.hardware import keep_freed_memory
from pipeline.packages.package import open_package
from pipeline.runtimes.opening import installed_runtimes, open_backend, place
from pipeline.stages.artefact_names import CALIBRATION, MODEL
from pipeline.stages.table import STAGES, Stage

ASIDE = ("sample", "prove", "trial")  # stages that are not counted in the sum: fitting a sample, proof and trial
REST = "rest"  # of the process: imports, and what lies between the stages


def cpu_seconds() -> float:
    """Return what this process and its ended children have used, user and system."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


@dataclass(frozen=True)
class Spent:
    cpu: float  # seconds
    wall: float
    peak: float  # MiB, of the process up to here


@contextmanager
def spending(name: str, spent: dict[str, Spent]) -> Iterator[None]:
    cpu, wall = cpu_seconds(), time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spent[name] = Spent(cpu_seconds() - cpu, time.perf_counter() - wall, peak)
    print(f"{name:<12} {spent[name].cpu:7.1f} s CPU {spent[name].wall:7.1f} s {peak:6.0f} MiB", flush=True)


def timed(stage: Stage[Any], spent: dict[str, Spent]) -> Stage[Any]:
    def run(settings: Any, inputs: Mapping[str, Path], out: Path) -> None:
        with spending(stage.name, spent):
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
    parser.add_argument("--nncf", type=int, default=0, metavar="TURNS", help="beside NNCF, which has to be installed")
    parser.add_argument("--floor-images", type=int, default=1000, help="of the float32 pass, scaled to all images")
    parser.add_argument("--workspace", type=Path, help="kept; default: a temporary folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    more = [f"frontend.checkpoint={args.weights}"] if args.weights else []
    more += [f"dataset.path={args.dataset}"] if args.dataset else []
    with tempfile.TemporaryDirectory() as folder:
        workspace = args.workspace or Path(folder)
        cfg = load_build_file(args.config, [*more, f"workspace.path={workspace}", *args.set])
        exported, prefix = measure(cfg, args.floor_images)
        from_onnx = [each for each in more if each.startswith("dataset")]
        from_onnx += ["frontend.type=onnx", "frontend.model=null", f"frontend.checkpoint={exported}"]
        for turn in range(args.nncf):
            beside_nncf(args.config, [*from_onnx, *args.set], exported, prefix, workspace / f"turn_{turn}")


def beside_nncf(config: str, settings: Sequence[str], float32: Path, prefix: Path, folder: Path) -> None:
    """Print the CPU seconds, and the peak memory, of this pipeline and of NNCF from an ONNX model to an int8 one."""
    folder.mkdir(parents=True, exist_ok=True)
    nearest = "backend.quantize.weight_rounding=nearest"
    apart("ours", build_alone, config, [*settings, f"workspace.path={folder / 'ours'}"])
    apart("nearest", build_alone, config, [*settings, f"workspace.path={folder / 'nearest'}", nearest])
    apart("nncf", quantize_by_nncf, float32, prefix, folder)


def apart(name: str, make: Callable[..., tuple[float, int]], *arguments: object) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        cpu, images = pool.submit(make, *arguments).result()
        peak = pool.submit(peak_mib).result()
    print(f"{name:<12} {cpu:7.1f} s CPU, {images} images, {peak:.0f} MiB", flush=True)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def build_alone(config: str, settings: Sequence[str]) -> tuple[float, int]:
    """Return the CPU seconds of this process after a build, without those of `ASIDE`, and the images it took."""
    spent: dict[str, Spent] = {}
    building.STAGES = tuple(timed(stage, spent) for stage in STAGES)  # type: ignore[misc]
    cfg = load_build_file(config, settings)
    keep_freed_memory()  # as the command
    building.build(cfg)
    aside = sum(each.cpu for name, each in spent.items() if name in ASIDE)
    return cpu_seconds() - aside, cfg.dataset.sampler.get_data_num


def quantize_by_nncf(float32: Path, prefix: Path, folder: Path) -> tuple[float, int]:
    """Return the CPU seconds of this process after NNCF has saved its model, and the images: those of a build."""
    package = open_package(prefix)
    listed = len(read_calibration_list(package.folder / CALIBRATION))
    made = ROWS["nncf"][0](Task(float32, package, listed, listed, folder))
    return cpu_seconds(), made.images


def measure(cfg: BuildConfig, floor_images: int) -> tuple[Path, Path]:
    """Build, print what each stage takes and the floor; return the exported model and the package's prefix."""
    spent: dict[str, Spent] = {}
    building.STAGES = tuple(timed(stage, spent) for stage in STAGES)  # type: ignore[misc]
    keep_freed_memory()  # as the command
    built = building.build(cfg)
    stages = built.stages
    whole = cpu_seconds()
    rest = whole - sum(each.cpu for each in spent.values())
    total = sum(each.cpu for name, each in spent.items() if name not in ASIDE) + rest
    floor = float_pass(cfg, stages, spent, floor_images)
    print(f"imports and what lies between {rest:.1f} s; floor {floor:.1f} s; build {total:.1f} s, {total / floor:.2f}x")
    return stages["export"] / MODEL, built.prefix


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
