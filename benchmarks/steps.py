"""Everything around the network beside what it could be at best, or beside what it stands for.

    pip install '.[benchmarks]'
    python benchmarks/steps.py images -m deploy_weights/FOLDER/NAME --images DIR
    python benchmarks/steps.py image2npz --images DIR
    python benchmarks/steps.py start -m deploy_weights/FOLDER/NAME --images DIR
    python benchmarks/steps.py calibration -m deploy_weights/FOLDER/NAME --images DIR
    python benchmarks/steps.py scale -m deploy_weights/FOLDER/NAME

images: from JPEG and npz to answers, beside the rate that decoding and inference allow one after the other on the same
cores. image2npz: beside one process of OpenCV, as the vendor's script has it, start included. start: how long commands
take to begin. calibration: beside a float32 pass that counts nothing and has its images prepared. scale: seconds and
memory as the number of images grows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from subprocess import DEVNULL

import numpy as np
from common import FAULT, exit_code
from PIL import Image

from pipeline.data import npz, preprocess
from pipeline.errors import ConfigError
from pipeline.host import hardware
from pipeline.packages.package import Package, open_package
from pipeline.run import results
from pipeline.run.inputs import find_images
from pipeline.run.performance import Recorder
from pipeline.run.plan import Limit, Plan
from pipeline.run.predict import Classifier
from pipeline.run.runner import measure
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import choose
from pipeline.stages.artefact_names import FIGURES

BATCH = 16
SCALES = "1000,5000,20000,50000"
SMALL = 96  # px, of the images of `scale`

_COLLECT = """
import sys
from pathlib import Path
from pipeline.data.sources import ImageSource
from pipeline.host.hardware import available_cores
from pipeline.packages.package import open_package
from pipeline.runtimes.readers import computes_bfloat16, preferred
from pipeline.stages.calibrate import Settings, collect
model, package, out, *images = map(Path, sys.argv[1:])
sources = [ImageSource(path.parent.absolute(), path.name) for path in images]
spec, bfloat16 = open_package(package).preprocess(), computes_bfloat16()
settings = Settings(preprocess=spec, bfloat16=bfloat16, cores=available_cores())
collect(settings, model, sources, out, preferred(bfloat16, len(sources)))
"""

_OPENCV = """
import os, sys
import cv2
import numpy as np
source, target = sys.argv[1:]
os.makedirs(target)
for name in sorted(os.listdir(source)):
    rgb = cv2.cvtColor(cv2.imread(os.path.join(source, name)), cv2.COLOR_BGR2RGB)
    np.savez(os.path.join(target, os.path.splitext(name)[0]), input_0=np.ascontiguousarray(rgb.transpose(2, 0, 1)))
"""

Turn = Callable[[], float]  # images/s


def in_turn(turns: int, measures: dict[str, Turn]) -> dict[str, list[float]]:
    """Measure one after the other, and again."""
    rates: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(turns):
        for name, one_turn in measures.items():
            rates[name].append(one_turn())
    return rates


def rate(images: int, work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return images / (time.perf_counter() - begun)


def images(args: argparse.Namespace) -> None:
    package = open_package(args.model)
    spec, cores = package.preprocess(), hardware.available_cores()
    paths = find_images([args.images])[: args.count]
    plan = Plan(package.model, choose(Runtime.AUTO), spec, batch=BATCH, instances=cores)
    with tempfile.TemporaryDirectory() as folder, Classifier(package.prefix, batch=BATCH) as classifier:
        arrays = []
        for index, path in enumerate(paths):
            arrays.append(Path(folder) / f"{index:06d}.npz")
            npz.write_image_npz(arrays[-1], preprocess.decode(path))
        list(classifier.predict(paths[:BATCH]))  # opens the model

        def load(path: Path) -> None:
            pixels = npz.read_image_npz(path) if path.suffix == ".npz" else preprocess.decode(path)
            preprocess.prepare(spec, pixels, raw=package.takes_pixels)

        def prepare_all(files: Sequence[Path]) -> float:
            with ThreadPoolExecutor(cores) as pool:
                return rate(len(files), lambda: list(pool.map(load, files)))

        def infer() -> float:
            recorder = Recorder()
            begun = measure(plan, Limit(duration_s=args.seconds), recorder)
            return recorder.summarize(begun, steady=True).throughput

        def from_npz() -> float:
            with tempfile.TemporaryDirectory() as out:
                figures = results.write_results(plan, {}, arrays, Path(out) / "results", "npz to results")
            assert figures is not None
            return figures.throughput

        found = in_turn(
            args.turns,
            {
                "decode and prepare JPEG": lambda: prepare_all(paths),
                "read and prepare npz": lambda: prepare_all(arrays),
                "infer": infer,
                "predict from JPEG": lambda: rate(len(paths), lambda: list(classifier.predict(paths))),
                "bench from npz to results": from_npz,
            },
        )
    for name, rates in found.items():
        print(f"{median(rates):9.1f} images/s  {name}")
    for name, first in (
        ("predict from JPEG", "decode and prepare JPEG"),
        ("bench from npz to results", "read and prepare npz"),
    ):
        turns = zip(found[name], found[first], found["infer"], strict=True)
        shares = [got / (1 / (1 / prepared + 1 / inferred)) for got, prepared, inferred in turns]
        print(f"{median(shares):9.2f} of 1 / (1 / ({first}) + 1 / infer): {name}")


def image2npz(args: argparse.Namespace) -> None:
    """Either in processes of its own, from their start to their end."""
    if find_spec("cv2") is None:
        raise ConfigError("OpenCV is not installed; run: pip install '.[benchmarks]'")
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        root = Path(folder)
        paths = link_some([args.images], args.count, root / "images")

        def timed(command: Sequence[str]) -> float:
            try:
                return rate(len(paths), lambda: subprocess.run([sys.executable, *command], check=True, stdout=DEVNULL))
            finally:
                shutil.rmtree(root / "npz")

        ours = [
            "-m",
            "pipeline",
            "image2npz",
            "--dataset_path",
            str(root / "images"),
            "--target_path",
            str(root / "npz"),
        ]
        ours += ["--text_path", str(root / "list.txt"), "--suffix", paths[0].suffix]
        peer = "OpenCV, one process"
        measures: dict[str, Turn] = {
            peer: lambda: timed(["-c", _OPENCV, str(root / "images"), str(root / "npz")]),
            "image2npz, one worker": lambda: timed([*ours, "--workers", "1"]),
            f"image2npz, {hardware.available_cores()} workers": lambda: timed(ours),
        }
        found = in_turn(args.turns, measures)
    print(f"{len(paths)} images")
    for name, rates in found.items():
        ratios = [own / other for own, other in zip(rates, found[peer], strict=True)]
        print(f"{median(rates):9.1f} images/s  {median(ratios):5.2f}x  {name}")


def link_some(folders: Sequence[Path], count: int, into: Path) -> list[Path]:
    """Return hard links to the first `count` images of some folders, under other names where there are too few."""
    found = find_images(folders)
    into.mkdir()
    links = []
    for index in range(count):
        path = found[index % len(found)]
        links.append(into / f"{index:06d}{path.suffix}")
        try:
            os.link(path, links[-1])
        except OSError:  # on another disk
            shutil.copy(path, links[-1])
    return links


def calibration(args: argparse.Namespace) -> None:
    """In a process of its own, for its memory; decoding included there, and opening the model; not in the pass."""
    package = open_package(args.model)
    float32 = package.workspace_file("float32_model")
    quantized_from = package.workspace_file("quantized_from")
    if float32 is None or quantized_from is None:
        raise ConfigError(
            f"{package.folder}: its build's workspace is not beside it; give -m a package where it was built"
        )
    paths = find_images([args.images])[: args.count]

    def plain(runtime: Runtime) -> float:
        plan = Plan(float32, runtime, package.preprocess(), batch=1, instances=hardware.available_cores())
        recorder = Recorder()
        begun = measure(plan, Limit(iterations=len(paths)), recorder)
        return recorder.summarize(begun, steady=False).throughput

    def calibrate() -> float:
        with tempfile.TemporaryDirectory(dir=args.scratch) as out:
            arguments = [str(quantized_from), str(package.folder), out, *map(str, paths)]
            done = rate(len(paths), lambda: subprocess.run([sys.executable, "-c", _COLLECT, *arguments], check=True))
            figures = json.loads((Path(out) / FIGURES).read_text("utf-8"))
            memory.append(figures["peak_memory_mib"])
            return done

    memory: list[int] = []
    found = in_turn(
        args.turns,
        {
            "float32 pass in OpenVINO": lambda: plain(Runtime.OPENVINO),
            "float32 pass in ONNX Runtime": lambda: plain(Runtime.ONNXRUNTIME),
            "calibration": calibrate,
        },
    )
    for name, rates in found.items():
        ratios = [peer / own for own, peer in zip(rates, found["float32 pass in OpenVINO"], strict=True)]
        print(f"{median(rates):9.1f} images/s  {median(ratios):5.2f}x the time  {name}")
    print(f"{max(memory):9} MiB of calibration, at most; {len(paths)} images a turn")


def start(args: argparse.Namespace) -> None:
    package = open_package(args.model)
    image = find_images([args.images])[0]
    commands = {
        "--help": ["--help"],
        "predict of one image": ["predict", "-m", str(package.prefix), str(image)],
        "the same in ONNX Runtime": ["predict", "-m", str(package.prefix), str(image), "--runtime", "onnxruntime"],
    }

    def seconds(command: Sequence[str]) -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pipeline", *command], check=True, capture_output=True)
        return time.perf_counter() - begun

    for name, command in commands.items():
        found = [seconds(command) for _ in range(args.turns)]
        print(f"{median(found):7.2f} s ({min(found):.2f} to {max(found):.2f})  {name}")


def scale(args: argparse.Namespace) -> None:
    """Each step in a process of its own, on copies of some small images under other names."""
    package = open_package(args.model)
    print("   images  step                       s   ms/image  MiB (largest process)")
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        root = Path(folder)
        make_images(package, root / "images", max(args.counts))
        names = sorted((root / "images").rglob("*.JPEG"))
        for count in args.counts:
            some = root / "some"
            for name in names[:count]:
                (some / name.parent.name).mkdir(parents=True, exist_ok=True)
                os.link(name, some / name.parent.name / name.name)
            datalist = ["--datalist", str(root / "npz.txt")]
            steps = {
                "image2npz": [
                    "--dataset_path",
                    str(some),
                    "--target_path",
                    str(root / "npz"),
                    "--text_path",
                    datalist[1],
                ],
                "bench": [
                    "-m",
                    str(package.prefix),
                    "-b",
                    str(BATCH),
                    "-i",
                    "2",
                    *datalist,
                    "--path_output",
                    str(root / "out"),
                ],
                "eval": ["--result_path", str(root / "out"), "--no-reference"],
                "predict": ["-m", str(package.prefix), str(some), "--csv", str(root / "out.csv")],
            }
            for step, flags in steps.items():
                seconds, memory = run_step([step, *flags])
                print(f"{count:9}  {step:20} {seconds:9.1f}  {1e3 * seconds / count:9.2f}  {memory:7.0f}", flush=True)
            for made in (some, root / "npz", root / "out"):
                shutil.rmtree(made)
            (root / "out.run.json").unlink()


def make_images(package: Package, root: Path, count: int) -> None:
    """Write small JPEG files into a folder per class; many are equal, which nothing here can take advantage of."""
    classes = [known.id for known in package.classes()]
    drawn = np.random.default_rng(0).integers(0, 256, (64, SMALL // 8, SMALL // 8, 3), np.uint8)
    for index in range(count):
        folder = root / classes[index % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn[index % len(drawn)]).resize((SMALL, SMALL)).save(folder / f"{index:06d}.JPEG", quality=90)


def run_step(arguments: Sequence[str]) -> tuple[float, float]:
    """Return seconds, and the peak memory in MiB of the process, or of a worker of it if that took more."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "pipeline", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(FAULT)
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return time.perf_counter() - begun, usage.ru_maxrss / unit


def read_counts(text: str) -> list[int]:
    counts = [int(each) if each.isascii() and each.isdigit() else 0 for each in text.split(",")]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"expected numbers of images such as 1000,5000, got {text!r}")
    return counts


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("step", choices=("images", "image2npz", "start", "calibration", "scale"))
    parser.add_argument(
        "-m", "--model", type=Path, metavar="PREFIX", help="package as folder/name (the last one built)"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="image files; all but scale need them")
    parser.add_argument("--count", type=int, default=1000, help="of them at most (%(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn of inference (%(default)s)")
    parser.add_argument("--counts", type=read_counts, default=SCALES, help="of scale: images, (%(default)s)")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where files are written and removed again (/tmp)")
    return parser


def run(args: argparse.Namespace) -> None:
    if args.images is None and args.step != "scale":
        raise ConfigError("--images: missing; give a folder of image files")
    print(f"{hardware.cpu_name()}, {hardware.available_cores()} cores, {', '.join(hardware.instruction_sets())}")
    {"images": images, "image2npz": image2npz, "start": start, "calibration": calibration, "scale": scale}[args.step](
        args
    )


def main(argv: Sequence[str]) -> int:
    args = make_parser().parse_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
