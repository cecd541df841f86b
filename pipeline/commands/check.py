"""The `check` command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands.flags import add_command
from pipeline.errors import ConfigError, PipelineError


def add_check(commands: Any) -> None:
    parser = add_command(
        commands,
        "check",
        _check,
        "check build files and vdsp_params files, and report every fault",
        "python -m pipeline check build_configs/timm_wideres.yaml",
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="build files, .yaml, and vdsp_params files, .json"
    )
    parser.add_argument(
        "-o",
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override any key of the build files, as build does",
    )
    parser.add_argument(
        "--keys", action="store_true", help="check the keys only: the weights and images that they name may be absent"
    )


def _check(args: argparse.Namespace) -> None:
    from pipeline import building
    from pipeline.config.build_file import load_build_file
    from pipeline.config.vdsp import load_vdsp

    if args.set and all(path.suffix == ".json" for path in args.files):
        raise ConfigError(f"--set {args.set[0]}: overrides a key of a build file (.yaml); none is given")
    faults = []
    for path in args.files:
        try:
            if path.suffix == ".json":
                load_vdsp(path)
            elif args.keys:
                load_build_file(path, args.set)
            else:
                building.check(load_build_file(path, args.set))
            print(f"{path}: ok")
        except PipelineError as err:
            faults.append(str(err))
    if faults:
        raise ConfigError("\n".join(faults))
