"""The `build` command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.flags import (
    add_command,
    add_key_flag,
    add_report_flag,
    check_report_path,
    flagged_keys,
    key_values,
)
from pipeline.errors import ConfigError
from pipeline.terminal import console

if TYPE_CHECKING:
    from pipeline.config.build_config import BuildConfig


def add_build(commands: Any) -> None:
    parser = add_command(
        commands,
        "build",
        _build,
        "build an int8 package from a build file",
        "python -m pipeline build timm_wideres.yaml",
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="build file, or the name of one in build_configs/")
    parser.add_argument(
        "-c",
        "--config",
        dest="config_file",
        metavar="FILE",
        help="same as CONFIG; also takes a PaddleClas config, unchanged",
    )
    for key in flagged_keys():
        add_key_flag(parser, key)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved build file and the stages that would run, and stop"
    )
    parser.add_argument(
        "-o",
        "--set",
        dest="set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override any key of the build file, or of a PaddleClas config",
    )
    add_report_flag(parser)


def _build(args: argparse.Namespace) -> None:
    from pipeline.host.hardware import collect_garbage_rarely, keep_freed_memory

    collect_garbage_rarely()
    from pipeline.config.build_file import load_build_file

    check_report_path(args.report)
    if (args.config is None) == (args.config_file is None):
        raise ConfigError("build: expected one build file, as build FILE or build -c FILE")
    cfg = load_build_file(args.config or args.config_file, args.set, extra=key_values(args))
    from pipeline.building import build, check, make_ready, plan
    from pipeline.reports.summary import summarize

    if args.dry_run:
        cfg = make_ready(cfg)
    else:
        check(cfg)
    for notice in cfg.notices:
        console.step(f"note: {notice}")
    if cfg.uses_sample:
        console.step("sample weights, sample images (give --weights and --dataset for your own)")
    if args.dry_run:
        from pipeline.commands.config import resolved

        print(resolved(cfg), end="")
        print("\n".join(f"# {line}" for line in (*plan(cfg), explain_name(cfg))))
        return
    keep_freed_memory()  # here, as above, since it holds for the whole process
    built = build(cfg, console.step)
    print("\n".join(summarize(built)))
    if "package" in built.ran:
        print(explain_name(cfg))
        _say_speed(built.prefix)
    if args.report is not None:
        from pipeline.reports import build as page

        page.write(built, args.report)
        print(f"report in {args.report}")


def explain_name(cfg: BuildConfig) -> str:
    """Say what the parts of a package's name mean; the name is the vendor's compiler's."""
    channels, height, width = cfg.frontend.chw
    precision = cfg.backend.dtype.value
    mode = f"{cfg.backend.quantize.calibrate_mode.value} calibration" if precision == "int8" else "no calibration"
    return (
        f"  its name, as the vendor's: {precision}, {mode}, input of {channels} channels and {height}x{width} px; "
        "vacc is the vendor's word for its target"
    )


def _say_speed(prefix: Path) -> None:
    """Say how fast int8 was in the trial, in the runtime that `auto` takes, why that one, and where it is slower."""
    from pipeline.packages.choice import runtime_for
    from pipeline.packages.package import open_package
    from pipeline.proof import speed
    from pipeline.runtimes.base import Runtime

    package = open_package(prefix)
    measured = package.speed()
    if measured is None:
        return
    chosen = runtime_for(package, Runtime.AUTO)
    slower, line = speed.describe(measured, chosen)
    if slower:
        console.warning(f"note: {line}")
    else:
        print(line)
    beside = speed.describe_choice(measured, chosen)
    if beside:
        print(beside)
    for each in speed.describe_others(measured, chosen):
        console.warning(f"note: {each}")
