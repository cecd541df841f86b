"""The `analyze` command: where a package loses accuracy, and where its time goes."""

from __future__ import annotations

import argparse
from typing import Any

from pipeline.commands.flags import (
    RUNTIMES,
    add_command,
    add_json_flag,
    add_model_flag,
    check_json_path,
    count,
    print_json,
    sayer,
)
from pipeline.errors import ConfigError
from pipeline.terminal.counts import counted


def add_analyze(commands: Any) -> None:
    parser = add_command(
        commands,
        "analyze",
        _analyze,
        "show what each quantizer of an int8 package costs in accuracy, or each operation in time",
        "python -m pipeline analyze --top 30",
    )
    add_model_flag(parser)
    parser.add_argument(
        "--images", type=count, default=None, metavar="N", help="calibration images to measure on (default: 16)"
    )
    parser.add_argument("--top", type=count, default=20, metavar="N", help="rows of the table")
    parser.add_argument("--time", action="store_true", help="measure time instead of accuracy")
    parser.add_argument(
        "--runtime", choices=RUNTIMES, help="with --time (default: auto, the one that the build found faster)"
    )
    parser.add_argument("-b", "--batch", type=count, metavar="N", help="with --time: images per request (default: 1)")
    add_json_flag(parser)


def _analyze(args: argparse.Namespace) -> None:
    from pipeline.packages.package import open_package

    check_json_path(args.json)
    if args.time and args.images is not None:
        raise ConfigError("--images: has no effect with --time; leave one of the two out")
    if not args.time and (args.runtime or args.batch):
        raise ConfigError(
            f"--{'runtime' if args.runtime else 'batch'}: works only with --time; add that, or leave it out"
        )
    package = open_package(args.model)
    say = sayer(args.json)
    say(package.heading)
    if args.time:
        from pipeline.measure import layer_times
        from pipeline.packages.choice import runtime_for
        from pipeline.runtimes.base import Runtime

        runtime = runtime_for(package, Runtime(args.runtime or "auto"))
        times = layer_times.measure(package, runtime, args.batch or 1)
        say(
            "\n".join(
                [
                    f"{runtime.value}, {counted(args.batch or 1, 'image')} per request",
                    *layer_times.describe(times, args.top),
                ]
            )
        )
        print_json(args.json, layer_times.as_dict(times))
    else:
        from pipeline.measure import analyze

        rows = analyze.analyze(package, args.images or analyze.IMAGES)
        say("\n".join(analyze.split_noise(package, args.images or analyze.IMAGES)))
        say("\n".join(analyze.describe(rows, args.top)))
        print_json(args.json, analyze.as_dict(rows))
