"""Accuracy and speed of int8 beside float32, for a network of each family, and of other tools where they are installed.

Each network is built with random weights and a classifier that is fitted to the embedded sample, so nothing is needed
but torch and the libraries that define the networks: pip install torch torchvision timm. A build file of any other
network, with its trained weights in it, can be given in the place of a family. Rows of NNCF need `nncf` beside them.

    python benchmarks/families.py mobilenetv2 vit --rows ours,ort-minmax,nncf-transformer --markdown families.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from common import exit_code

from pipeline.errors import BackendError, ConfigError
from pipeline.models import libraries
from pipeline.terminal import console

FAMILIES = {  # family: library, name there
    "convnext": ("timm", "convnext_atto"),
    "deit": ("timm", "deit_tiny_patch16_224"),
    "densenet": ("torchvision", "densenet121"),
    "efficientnet": ("torchvision", "efficientnet_b0"),
    "efficientnet-lite": ("timm", "efficientnet_lite0"),
    "ghostnet": ("timm", "ghostnet_100"),
    "inception": ("timm", "inception_v3"),
    "mnasnet": ("torchvision", "mnasnet1_0"),
    "mobilenetv2": ("torchvision", "mobilenet_v2"),
    "mobilenetv3": ("torchvision", "mobilenet_v3_large"),
    "mobilenetv3-small": ("torchvision", "mobilenet_v3_small"),
    "mobilevit": ("timm", "mobilevit_s"),
    "regnet": ("torchvision", "regnet_y_400mf"),
    "resnet": ("torchvision", "resnet18"),
    "resnext": ("torchvision", "resnext50_32x4d"),
    "seresnet": ("timm", "seresnet18"),
    "shufflenet": ("torchvision", "shufflenet_v2_x1_0"),
    "squeezenet": ("torchvision", "squeezenet1_1"),
    "swin": ("timm", "swin_tiny_patch4_window7_224"),
    "vgg": ("torchvision", "vgg11_bn"),
    "vit": ("timm", "vit_small_patch16_224"),
}
ROWS = "ours,ort-minmax,nncf,nncf-transformer"
ACCURACY = Path(__file__).resolve().parent / "accuracy.py"
TITLES = ("network", "model", "runtime", "same answers", "KL", "SQNR, dB", "over float32 there", "CPU s", "MiB")


@dataclass(frozen=True)
class Network:
    """What is measured."""

    name: str
    build_file: Path


def write_build_file(family: str, images: int, folder: Path) -> Network:
    """Write the build file of a family, as `init` would: the library's own size, crop, mean and std."""
    library, name = FAMILIES[family]
    recipe = libraries.recipe(library, name)
    height, width = recipe.crop_hw
    build_file = {
        "name": name,
        "frontend": {"type": library, "model": name, "shape": {"input": [1, 3, height, width]}},
        "dataset": {
            "sampler": {"get_data_num": images, "cover_classes": False},
            "process_ops": recipe.process_ops(),
        },
    }
    path = folder / f"{family}.yaml"
    path.write_text(yaml.safe_dump(build_file, sort_keys=False), encoding="utf-8")
    return Network(name, path)


def networks(args: argparse.Namespace, folder: Path) -> list[Network]:
    """Return what to measure; find what is missing before hours of work.

    Raises:
        ConfigError: neither a family nor a build file, or a library is not installed.
    """
    found = []
    for each in args.networks or FAMILIES:
        if each in FAMILIES:
            libraries.check(*FAMILIES[each], "NETWORK")
            found.append(write_build_file(each, args.calibration_images, folder))
        elif Path(each).is_file():
            found.append(Network(Path(each).stem, Path(each)))
        else:
            raise ConfigError(f"{each!r} is neither a build file nor one of {', '.join(FAMILIES)}")
    return found


def measure(network: Network, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Return what `accuracy.py` found, in a process of its own: a network that ends it costs no other.

    Raises:
        BackendError: it failed; why stands above.
    """
    command = [sys.executable, str(ACCURACY), str(network.build_file), "--rows", args.rows, "--json", str(out)]
    command += ["--workspace", str(args.workspace), "--calibration-images", str(args.calibration_images)]
    command += ["--evaluation-images", str(args.evaluation_images), "--rounds", str(args.rounds)]
    if args.models is not None:
        args.models.mkdir(parents=True, exist_ok=True)
        command += ["--models", str(args.models / network.name)]
    for flag, value in (("--evaluation", args.evaluation), ("--val_label", args.val_label)):
        command += [flag, str(value)] if value is not None else []
    for override in args.set:
        command += ["--set", override]
    code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    if code:
        raise BackendError(f"{network.name}: not measured, accuracy.py ended with {code}")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def lines(name: str, found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each model and runtime.

    Speeds are by CPU time over float32 in the same runtime, each from a ratio to float32 in OpenVINO that ran in turn.
    """
    costs = {cost["name"]: cost for cost in found["made"]}
    float32 = {row["runtime"]: row["times_float32"] for row in found["rows"] if row["name"] == "float32"}
    for row in found["rows"]:
        if row["name"] != "float32":
            same = f"{row['agreeing']}/{found['evaluation_images']}"
            sqnr = "-" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
            times = row["times_float32"]
            speed = "-" if times is None else f"{times / float32[row['runtime']]:.2f}x"
            cost = costs[row["name"]]
            spent = ("-" if cost[key] is None else f"{cost[key]:.0f}" for key in ("cpu_seconds", "peak_memory_mib"))
            yield name, row["name"], row["runtime"], same, f"{row['kl']:.4f}", sqnr, speed, *spent


def markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (TITLES, ["---"] * len(TITLES), *rows)) + "\n"


def run(args: argparse.Namespace, folder: Path) -> None:
    rows: list[tuple[str, ...]] = []
    for network in networks(args, folder):
        try:
            found = measure(network, args, folder / f"{network.name}.json")
        except BackendError as err:
            console.warning(str(err))
            rows.append((network.name, "not measured", *["-"] * (len(TITLES) - 2)))
            continue
        rows += lines(network.name, found)
        if args.markdown is not None:
            args.markdown.write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "networks", metavar="NETWORK", nargs="*", help=f"build files, or of {', '.join(FAMILIES)} (all)"
    )
    parser.add_argument("--rows", default=ROWS, help="models, as accuracy.py knows them (%(default)s)")
    parser.add_argument("--calibration-images", type=int, metavar="N", default=200, help="for every tool (%(default)s)")
    parser.add_argument("--evaluation-images", type=int, metavar="N", default=200, help="others (%(default)s)")
    parser.add_argument("--evaluation", type=Path, metavar="DIR", help="labelled images for build files with weights")
    parser.add_argument("--val_label", type=Path, metavar="FILE", help="labels of a flat evaluation folder")
    parser.add_argument("--rounds", type=int, metavar="N", default=5, help="of the speeds, 0: left out (%(default)s)")
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help="keep the models there, and take those that are there"
    )
    parser.add_argument("--workspace", type=Path, metavar="DIR", default=Path("families"), help="builds (%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the build file, for ours")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, network by network")
    return parser


def main(argv: Sequence[str]) -> int:
    args = make_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        return exit_code(lambda: run(args, Path(folder)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
