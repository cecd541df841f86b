"""Runs of an hour and of 100,000 images, which nobody makes by hand: what grows, what is lost, what is left behind.

    pip install '.[serve,dev]'
    python benchmarks/long_runs.py build --images 10000
    python benchmarks/long_runs.py predict --images 100000
    python benchmarks/long_runs.py serve --minutes 60

Each makes what it needs below --folder, once: a resnet18 of 64 px, small JPEG files that are all different, in ten
classes, and two packages. build: the same build of a tenth of the images and of all, beside each other. predict: every
image once. serve: packages are swapped and SIGHUP is sent while clients ask at --load of what the server was found to
take under --quota; every answer is compared with those of the packages outside the server. Figures are Markdown.
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import exit_code
from long_serving import serve_long
from PIL import Image
from watching import Sample, Watch, slope, table

from pipeline.errors import BackendError, DataError
from pipeline.host import hardware

NAME = "long"
CLASSES, SIDE, SAVED = 10, 64, 80  # px: what the network takes, and the files
FITTED = 200  # images that the network's classifier is fitted to
PACKAGED = 100  # calibration images of the packages to serve
SAMPLE_S = 1.0


def draw(index: int) -> Image.Image:
    """Return an image like no other: the class is a base colour, the image coarse noise over it."""
    colour = np.random.default_rng(index % CLASSES).integers(40, 216, 3)
    noise = np.random.default_rng((CLASSES, index)).normal(0, 50, (10, 10, 3))
    return Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).resize((SAVED, SAVED))


def make_images(folder: Path, count: int) -> Path:
    """Write images into a folder per class; those that are there already stay."""
    for index in range(count):
        path = folder / f"class{index % CLASSES}" / f"{index:06d}.JPEG"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(index).save(path, quality=90)
    return folder


def make_build_file(folder: Path) -> Path:
    """Write random weights of resnet18 with a classifier fitted to the images, and `init` a build file of them."""
    path = folder / f"{NAME}.yaml"
    if not path.exists():
        import torch

        from pipeline.models import zoo
        from pipeline.weights.sample_weights import fit_sample_weights

        images = make_images(folder / "few", FITTED)
        labelled = [(file, int(file.parent.name[-1])) for file in sorted(images.rglob("*.JPEG"))]
        network = zoo.build_network(zoo.find_model("torchvision", "resnet18"), num_classes=CLASSES)
        fit_sample_weights(network, _prepare, labelled)
        torch.save(network.state_dict(), folder / f"{NAME}.pth")
        flags = ["--weights", str(folder / f"{NAME}.pth"), "--dataset", str(images), "--size", str(SIDE)]
        run(["init", str(path), "--quiet", *flags])
    return path


def _prepare(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image.resize((SIDE, SIDE)), np.float32).transpose(2, 0, 1) / 255
    return (pixels - np.float32(0.45)) / np.float32(0.225)


@dataclass(frozen=True)
class Run:
    """A command that has ended."""

    printed: str
    seconds: float
    samples: Sequence[Sample]

    @property
    def peak_mib(self) -> float:
        return max(each.memory_mib for each in self.samples)


def run(arguments: Sequence[str], every_s: float = SAMPLE_S) -> Run:
    """Run a command, and watch it.

    Raises:
        BackendError: it failed; why stands above.
    """
    begun = time.perf_counter()
    command = [sys.executable, "-m", "pipeline", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, Watch(process.pid, every_s) as watch:
        printed = process.communicate()[0]
    if process.returncode:
        raise BackendError(f"{arguments[0]} ended with {process.returncode}")
    return Run(printed, time.perf_counter() - begun, watch.samples)


def build(args: argparse.Namespace) -> None:
    """Print seconds of each stage and the peak memory, of a tenth of the images and of all."""
    build_file = make_build_file(args.folder)
    images = make_images(args.folder / "calibration", args.images)
    counts = (args.images // 10, args.images)
    found = []
    for count in counts:
        workspace = args.folder / f"built{count}"
        shutil.rmtree(workspace, ignore_errors=True)
        flags = ["--dataset", str(images), "--num_images", str(count), "--output", str(workspace)]
        found.append(run(["build", str(build_file), *flags]))
        listed = next(workspace.glob("*-vacc/calibration.txt")).read_text("utf-8").splitlines()
        if len({line for line in listed if not line.startswith("#")}) != count:
            raise DataError(f"{workspace}: calibrated on {len(set(listed))} images, wanted {count}")
    stages = [dict(re.findall(r"^\[\d+/\d+\] (\w+): ([\d.]+) s", each.printed, re.MULTILINE)) for each in found]
    rows = [[stage, *(each.get(stage, "-") for each in stages)] for stage in stages[-1]]
    rows.append(["all, seconds", *(f"{each.seconds:.1f}" for each in found)])
    rows.append(["peak memory, MiB", *(f"{each.peak_mib:.0f}" for each in found)])
    print(table(["stage, seconds", *(f"{count} images" for count in counts)], rows))
    for each in found:
        print(each.printed.rstrip().splitlines()[-1])


def predict(args: argparse.Namespace) -> None:
    """Print how memory goes while many images are answered; each has to be answered once."""
    prefix = make_package(args.folder, "percentile")
    images = make_images(args.folder / "many", args.images)
    answers = args.folder / "answers.csv"
    done = run(
        ["predict", "-m", str(prefix), str(images), "--csv", str(answers), "--topk=1", "--runtime", args.runtime]
    )
    with answers.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = Counter(Path(row["file"]).stem for row in rows)
    if set(names) != {f"{index:06d}" for index in range(args.images)} or set(names.values()) != {1}:
        raise DataError(f"{answers}: {len(rows)} answers to {len(names)} of {args.images} images")
    right = sum(row["file"].split("/")[-2] == row["label"] for row in rows)
    parts = [done.samples[min(len(done.samples) - 1, len(done.samples) * tenth // 10)] for tenth in range(1, 11)]
    titles = ["second", "memory, MiB", "file descriptors", "threads"]
    print(table(titles, [[f"{each.seconds:.0f}", f"{each.memory_mib:.0f}", *counted(each)] for each in parts]))
    growth, error = slope(done.samples, done.seconds / 10)
    print(
        f"{args.images} images in {done.seconds:.0f} s, {args.images / done.seconds:.0f} images/s; each answered once, "
        f"{right} right; memory after the first tenth {growth / 60:+.2f} MiB a minute (standard error {error / 60:.2f})"
    )


def counted(sample: Sample) -> list[str]:
    return [str(sample.descriptors), str(sample.threads)]


def make_package(folder: Path, mode: str) -> Path:
    """Return a small package, built once; packages of other modes answer differently."""
    workspace = folder / f"package-{mode}"
    if not list(workspace.glob("*-vacc")):
        flags = ["--output", str(workspace), "--num_images", str(PACKAGED)]
        quick = ["backend.quantize.weight_rounding=nearest", f"backend.quantize.calibrate_mode={mode}"]
        run(["build", str(make_build_file(folder)), *flags, *(word for key in quick for word in ("--set", key))])
    return next(workspace.glob("*-vacc")) / NAME


def serve(args: argparse.Namespace) -> None:
    prefixes = [make_package(args.folder, mode) for mode in ("percentile", "max")]
    files = [path.read_bytes() for path in sorted((args.folder / "few").rglob("*.JPEG"))[::10]]
    serve_long(prefixes, files, args)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "predict", "serve"))
    parser.add_argument("--folder", type=Path, metavar="DIR", default=Path("long_runs"), help="(%(default)s)")
    parser.add_argument("--images", type=int, metavar="N", default=10_000, help="of build and predict (%(default)s)")
    parser.add_argument("--runtime", default="openvino", help="of predict and serve (%(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="of serve (%(default)s)")
    parser.add_argument("--quota", type=float, default=0.0, metavar="CORES", help="of the server (0: all)")
    parser.add_argument("--load", type=float, default=0.8, help="of what the server takes (%(default)s)")
    parser.add_argument("--swap", type=float, default=60.0, metavar="S", help="between two packages (%(default)s)")
    return parser


def main(argv: Sequence[str]) -> int:
    args = make_parser().parse_args(argv)
    args.folder = args.folder.absolute()
    args.folder.mkdir(parents=True, exist_ok=True)
    print(f"{hardware.cpu_name()}, {hardware.available_cores()} cores, {', '.join(hardware.instruction_sets())}")
    return exit_code(lambda: {"build": build, "predict": predict, "serve": serve}[args.what](args))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
