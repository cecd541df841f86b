"""The build files of the vendor's zoo, really built: what comes of each, and how far int8 is from float32.

The zoo is a checkout of Vastai/VastModelZOO, of which build files and vdsp_params files are read and nothing else. Its
checkpoints are not used: the networks are made anew, with weights fitted to the embedded sample (`zoo_networks.py`,
which says what stands for each). So the figures say what quantization costs such weights, and whether a file builds,
not how accurate the zoo's networks are. Build files of the same network and preprocessing share it
(DIR/networks) and a workspace, so that later ones run only the stages in which they differ.

    python benchmarks/zoo.py VastModelZOO --out zoo_runs --markdown zoo.md
    python benchmarks/zoo.py VastModelZOO --out zoo_runs resnet 'vgg/*vgg'    # folders, names or folder/name

Builds run one at a time, with as many images as the file asks for (`dataset.sampler.cover_classes=false`, or one a
class would be taken), or with `--most-images`. What is done already is kept: remove DIR/NAME/result.json to repeat it.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from common import exit_code
from zoo_table import cells, markdown

from pipeline.data.imagenet import list_dataset
from pipeline.data.sample import SAMPLE_CLASSES, write_sample
from pipeline.errors import ConfigError

HERE = Path(__file__).resolve().parent
EVALUATION_IMAGES = 100
FEW = {"pplcnet_doc_ori": 4, "pplcnet_textline_ori": 2}  # classes of networks that are not ImageNet's
# Preprocessing of files that leave it to the vendor's runner, and have no vdsp_params file beside them.
PREPARED = {
    "vision_transformer": (
        "[{type: DecodeImage}, {type: Resize, size: [224, 224]}, {type: Normalize, mean: [0.5, 0.5, 0.5], "
        "std: [0.5, 0.5, 0.5]}, {type: ToTensor}]"
    )
}
VDSP = {  # the file beside a build file without preprocessing
    "mobilevit": "apple-mobilevit_b-vdsp_params.json",
    "swin_transformer": "microsoft-swin_b-vdsp_params.json",
    "yolov11_cls": "ultralytics-yolov11n_cls-vdsp_params.json",
    "yolov5_cls": "yolov5m_cls-vdsp_params.json",
}
KEPT = "result.json"
UNTRIED = {"outcome": "not tried"}


@dataclass(frozen=True)
class Entry:
    """A build file of the zoo."""

    path: Path
    text: Mapping[str, Any]

    @property
    def folder(self) -> str:
        return self.path.parents[2].name

    @property
    def key(self) -> str:
        return f"{self.folder}/{self.path.stem}"

    def is_one_of(self, wanted: Sequence[str]) -> bool:
        names = (self.folder, self.path.stem, self.key)
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in wanted)

    @property
    def name(self) -> str:
        return self.key.replace("/", "-")

    def changes(self, most_images: int) -> list[str]:
        """Return the keys that are set: fewer images, and preprocessing where the file has none."""
        dataset = self.text.get("dataset") or {}
        found = []
        if dataset.get("sampler"):
            wanted = min(int(dataset["sampler"].get("get_data_num", 1000)), most_images)
            found += ["dataset.sampler.cover_classes=false", f"dataset.sampler.get_data_num={wanted}"]
        if not dataset.get("process_ops"):
            if self.folder in PREPARED:
                return [*found, f"dataset.process_ops={PREPARED[self.folder]}"]
            vdsp = self.path.parents[1] / "vdsp_params" / VDSP[self.folder]
            found.append(f"dataset.vdsp_params={vdsp}")
        return found


def entries(checkout: Path, wanted: Sequence[str]) -> list[Entry]:
    """Return the build files whose folder, name, or folder/name is wanted, in shell patterns; or all.

    Raises:
        ConfigError: there are none.
    """
    paths = sorted(checkout.glob("cv/classification/*/build_in/build/*.yaml"))
    found = [Entry(path, yaml.safe_load(path.read_text(encoding="utf-8"))) for path in paths]
    found = [each for each in found if not wanted or each.is_one_of(wanted)]
    if not found:
        raise ConfigError(
            f"{checkout}: holds no such cv/classification/*/build_in/build/*.yaml; give a clone of the zoo"
        )
    return found


def images_of(entry: Entry, out: Path, split: str) -> Path:
    """Return the folder of a split of the sample, made where it is not there; of few classes, each of many textures."""
    base = out / "images" / split
    if not base.is_dir():
        step = 1 if split == "calibration" else SAMPLE_CLASSES // EVALUATION_IMAGES
        scratch = base.with_name(f"{split}.part")
        write_sample(scratch, split, range(0, SAMPLE_CLASSES, step))
        scratch.rename(base)
    classes = FEW.get(entry.folder)
    if classes is None:
        return base
    few = out / "images" / f"{split}_{classes}"
    if not few.is_dir():
        scratch = few.with_name(f"{few.name}.part")
        for index, image in enumerate(sorted(base.rglob("*.JPEG"))):
            target = scratch / f"class_{index % classes}" / f"{image.stem}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, target)
        scratch.rename(few)
    return few


def call(command: Sequence[str], log: Path) -> tuple[int, float, float, float]:
    """Run a command; return its code, seconds, CPU seconds of all its processes, and peak MiB of the largest."""
    begun = time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    return process.returncode, time.perf_counter() - begun, cpu, usage.ru_maxrss / (1 << 10)


def why(log: Path) -> str:
    """Return what a process said last: the line of its error."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["nothing was said"])[-1]


def make_network(entry: Entry, args: argparse.Namespace, folder: Path, changes: Sequence[str]) -> dict[str, Any]:
    """Return the file of the network, and what stands for the zoo's, or why there is none."""
    images = images_of(entry, args.out, "calibration")
    # A Keras network is made where it is built: both need the extra `keras`.
    is_keras = entry.text["frontend"]["type"] == "keras"
    command = [
        sys.executable if is_keras else args.python,
        str(HERE / ("zoo_keras.py" if is_keras else "zoo_networks.py")),
        str(entry.path),
        "--images",
        str(images),
        "--out",
        str(args.out / "networks"),
        "--fit-images",
        str(args.fit_images),
    ]
    log = folder / "network.log"
    code, *_ = call([*command, *(part for each in changes for part in ("--set", each))], log)
    if code:
        return {"outcome": "no network", "why": why(log)}
    found: dict[str, Any] = json.loads(log.read_text(encoding="utf-8").strip().splitlines()[-1])
    return found


def workspace_of(args: argparse.Namespace, network: Path) -> Path:
    """Return the workspace of a network: build files that share it share the stages that do not differ."""
    found: Path = args.out / "workspaces" / network.stem
    return found


def build(
    entry: Entry, args: argparse.Namespace, folder: Path, network: Path, changes: Sequence[str]
) -> dict[str, Any]:
    """Return what came of a build."""
    command = [sys.executable, "-m", "pipeline", "build", str(entry.path), "--weights", str(network)]
    command += ["--output", str(workspace_of(args, network))]
    if (entry.text.get("dataset") or {}).get("path"):
        command += ["--dataset", str(images_of(entry, args.out, "calibration"))]
    log = folder / "build.log"
    code, seconds, cpu, memory = call([*command, *(part for each in changes for part in ("--set", each))], log)
    spent = {"seconds": round(seconds), "cpu_seconds": round(cpu), "peak_memory_mib": round(memory)}
    if code:
        return {"outcome": "refused" if code == 2 else f"ended with {code}", "why": why(log), **spent}
    return {"outcome": "built", **spent}


def judge(entry: Entry, args: argparse.Namespace, network: Path) -> dict[str, Any]:
    """Return how far a package is from float32: as its build found, and in runtimes on other images."""
    from judging import evaluate
    from quantizers import EITHER

    from pipeline.packages.package import open_package, packages_in

    built = packages_in(workspace_of(args, network))
    package = open_package(next(path for path in built if path.name.startswith(f"{entry.text['name']}-")))
    proof = package.report()["proof"]
    found = {"exact": proof["exact"], "runtimes": proof["runtimes"]}
    if package.precision != "int8":
        return found
    images = images_of(entry, args.out, "evaluation")
    samples = list_dataset(images, "any", None, [known.id for known in package.classes()]).samples
    options = argparse.Namespace(rounds=0, runtimes=[each.value for each in EITHER], peer=[], peer_options="")
    count = min(args.evaluation_images, len(samples))
    samples = [samples[index * len(samples) // count] for index in range(count)]
    rows = evaluate({"ours": (package.model, EITHER)}, package, samples, options)
    figures = {row.runtime: {"same": row.agreeing, "kl": row.kl, "sqnr_db": row.sqnr_db} for row in rows}
    return {**found, "evaluation": {"images": len(samples), **figures}}


def read_kept(entry: Entry, args: argparse.Namespace) -> dict[str, Any] | None:
    """Return what an earlier run found of a build file."""
    kept = args.out / entry.name / KEPT
    if not kept.is_file():
        return None
    done: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return done


def measure(entry: Entry, args: argparse.Namespace) -> dict[str, Any]:
    """Return all that is found of a build file; a kept result is taken as it is."""
    done = read_kept(entry, args)
    if done is not None:
        return done
    folder = args.out / entry.name
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"key": entry.key, "dtype": entry.text["backend"].get("dtype")}
    result["changes"] = changes = [*entry.changes(args.most_images), *args.set]
    result |= make_network(entry, args, folder, changes)
    if "file" in result:
        result |= build(entry, args, folder, Path(result["file"]), changes)
    if result["outcome"] == "built":
        result |= judge(entry, args, Path(result["file"]))
    (folder / KEPT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def run(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    results = []
    for entry in entries(args.checkout, args.wanted):
        results.append(read_kept(entry, args) or UNTRIED | {"key": entry.key} if args.kept else measure(entry, args))
        print(" | ".join(cells(results[-1])), flush=True)
        if args.markdown is not None:
            args.markdown.write_text(markdown(results), encoding="utf-8")
    if not (args.keep or args.kept):
        shutil.rmtree(args.out / "workspaces", ignore_errors=True)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("checkout", type=Path, metavar="CHECKOUT", help="a clone of the zoo")
    parser.add_argument("wanted", nargs="*", metavar="NAME", help="folders, names or folder/name, in patterns (all)")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("zoo_runs"), help="results (%(default)s)")
    parser.add_argument("--most-images", type=int, metavar="N", default=1000, help="for calibration (%(default)s)")
    parser.add_argument(
        "--fit-images", type=int, metavar="N", default=SAMPLE_CLASSES, help="that weights are fitted to (%(default)s)"
    )
    parser.add_argument(
        "--evaluation-images", type=int, metavar="N", default=EVALUATION_IMAGES, help="others, at most (%(default)s)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of all builds, as of `build`")
    parser.add_argument("--python", default=sys.executable, help="with torch, torchvision, timm and onnxsim (this one)")
    parser.add_argument("--keep", action="store_true", help="keep packages")
    parser.add_argument("--kept", action="store_true", help="the table of earlier results; nothing is run")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, build by build")
    return parser


def main(argv: Sequence[str]) -> int:
    args = make_parser().parse_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
