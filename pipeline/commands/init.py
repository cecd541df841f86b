"""The `init` command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands.flags import (
    add_command,
    add_key_flag,
    sayer,
)
from pipeline.errors import ConfigError


def add_init(commands: Any) -> None:
    parser = add_command(
        commands,
        "init",
        _init,
        "write a build file for your own weights and images",
        "python -m pipeline init mynet.yaml --weights mynet.pth --dataset images/train --evaluation images/val",
    )
    parser.add_argument("out", type=Path, metavar="FILE.yaml", help="the build file to write, - for standard output")
    add_key_flag(parser, "frontend.checkpoint", type=Path, required=True)
    add_key_flag(parser, "dataset.path", type=Path, required=True)
    add_key_flag(parser, "evaluation.path", type=Path)
    parser.add_argument(
        "--model", metavar="LIBRARY/NAME", help="as `models` lists it (default: found out from the weights)"
    )
    parser.add_argument(
        "--size", type=int, metavar="PX", help="height and width of the input (default: the network's usual)"
    )
    add_key_flag(parser, "frontend.checkpoint_key", "--checkpoint_key", metavar="KEY")
    add_key_flag(parser, "dataset.sampler.suffix", "--suffix", default="any")
    add_key_flag(parser, "dataset.val_label", "--val_label", type=Path, metavar="FILE")


def _init(args: argparse.Namespace) -> None:
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
    )
    say = sayer(args.out)
    say("\n".join(new_build_file.write(given)))
    if args.out.is_file():
        say(f"{args.out} written; next: python -m pipeline build {args.out}")
