"""The `init` command."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.commands.flags import add_command, add_key_flag, add_override_flag, sayer
from pipeline.errors import ConfigError


def add_init(commands: Any) -> None:
    parser = add_command(
        commands,
        "init",
        _init,
        "write a build file for your own weights and images",
        "python -m pipeline init mynet.yaml --weights mynet.pth --dataset images/train --evaluation images/val",
    )
    parser.add_argument("out", type=Path, metavar="FILE.yaml", help="build file to write; - is standard output")
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        help="start from a PaddleClas config; the flags below override it",
    )
    add_override_flag(parser)
    add_key_flag(parser, "frontend.checkpoint", type=Path)
    add_key_flag(parser, "dataset.path", type=Path)
    add_key_flag(parser, "evaluation.path", type=Path)
    parser.add_argument(
        "--model",
        metavar="LIBRARY/NAME",
        help="network, as `models` lists it, or any of an installed timm or torchvision, such as "
        "timm/convnext_tiny.fb_in1k; without --weights, its published weights (default: recognised by the weights)",
    )
    parser.add_argument(
        "--size", type=int, metavar="PX", help="height and width of the input (default: the network's usual size)"
    )
    for name, what in (("--mean", "means"), ("--std", "standard deviations")):
        parser.add_argument(
            name,
            metavar="R,G,B",
            help=f"{what} that the network was trained with, for pixels from 0 to 1 (default: as the library or files "
            "beside the weights record them, else ImageNet's)",
        )
    add_key_flag(parser, "frontend.checkpoint_key", "--checkpoint_key", metavar="KEY")
    add_key_flag(parser, "dataset.sampler.suffix", "--suffix", default="any")
    add_key_flag(parser, "dataset.val_label", "--val_label", type=Path, metavar="FILE")


def _init(args: argparse.Namespace) -> None:
    if args.config is not None:
        _init_from_config(args)
        return
    if args.set:
        raise ConfigError(f"init: -o {args.set[0]}: overrides a config of PaddleClas; give one by -c FILE")
    _check(args)
    from pipeline.prepare import new_build_file

    if args.size is not None and not 1 <= args.size <= 16384:
        raise ConfigError(f"--size: must be in 1..16384, got {args.size}")
    given = new_build_file.Given(
        args.out,
        args.weights,
        args.dataset,
        args.evaluation,
        args.model,
        args.size,
        args.checkpoint_key,
        args.suffix,
        args.val_label,
        _numbers("--mean", args.mean),
        _numbers("--std", args.std),
    )
    say = sayer(args.out)
    say("\n".join(new_build_file.write(given)))
    _say_next(args.out, say)


def _check(args: argparse.Namespace) -> None:
    """Raise ConfigError where flags are missing that go with others."""
    if args.weights is None and args.model is None:
        raise ConfigError(
            "init: --weights: missing; give it, or --model LIBRARY/NAME for published weights, or a config of "
            "PaddleClas by -c FILE"
        )
    if args.dataset is None and args.weights is not None:
        raise ConfigError("init: --dataset: missing; give it, or a config of PaddleClas by -c FILE")
    if args.dataset is None and args.evaluation is not None:
        raise ConfigError("init: --evaluation: needs --dataset too: sample weights cannot be measured on other images")


def _numbers(flag: str, text: str | None) -> tuple[float, ...] | None:
    """Return three numbers of a 0..1 image; one stands for all channels."""
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    least = 0.0 if flag == "--std" else -math.inf
    if len(values) not in (1, 3) or not all(least < value <= 1.0 for value in values):
        raise ConfigError(f"{flag}: expected R,G,B of a 0..1 image, as 0.485,0.456,0.406, got {text!r}")
    return tuple(values * 3 if len(values) == 1 else values)


def _init_from_config(args: argparse.Namespace) -> None:
    from pipeline.prepare import from_paddleclas

    given = [flag for flag in ("model", "size", "mean", "std") if getattr(args, flag) is not None]
    if given:
        key = {"model": "Arch.name", "size": "the crop of its preprocessing"}.get(given[0], "its NormalizeImage")
        raise ConfigError(
            f"--{given[0]}: {key} of {args.config} says it; change that by -o, or leave one of the two out"
        )
    keys = {
        "frontend.checkpoint": args.weights,
        "frontend.checkpoint_key": args.checkpoint_key,
        "dataset.path": args.dataset,
        "dataset.val_label": args.val_label,
        "dataset.sampler.suffix": None if args.suffix == "any" else args.suffix,
        "evaluation.path": args.evaluation,
    }
    say = sayer(args.out)
    say("\n".join(from_paddleclas.write(args.out, args.config, args.set, keys)))
    _say_next(args.out, say)


def _say_next(out: Path, say: Callable[[str], None]) -> None:
    if out.is_file():
        say(f"{out} written; next: python -m pipeline build {out}")
