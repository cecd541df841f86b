"""The `eval` command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.flags import (
    add_command,
    add_json_flag,
    add_override_flag,
    add_report_flag,
    add_results_flag,
    check_json_path,
    check_report_path,
    print_json,
    sayer,
)
from pipeline.errors import ConfigError
from pipeline.terminal import console

if TYPE_CHECKING:
    from pipeline.packages.package import Package


def add_eval(commands: Any) -> None:
    parser = add_command(
        commands,
        "eval",
        _eval,
        "top-1 and top-5 accuracy of a run, compared with float32",
        "python -m pipeline eval --result_path output",
    )
    add_results_flag(parser, type=Path, required=True, help="results folder that bench has written")
    parser.add_argument(
        "--datalist", type=Path, metavar="FILE", help="the datalist of the run: check the results against it"
    )
    parser.add_argument(
        "--label",
        type=Path,
        metavar="FILE",
        help="class names, one per line, or lines as in --val_label (default: the package's)",
    )
    parser.add_argument("--val_label", type=Path, metavar="FILE", help="ground truth: lines 'name index'")
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        help="take the label list of the evaluation from a PaddleClas config",
    )
    add_override_flag(parser)
    parser.add_argument(
        "--reference",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="run float32 on the same images and compare (default: up to 2000 images)",
    )
    add_report_flag(parser)
    add_json_flag(parser)


def _read_labels(args: argparse.Namespace) -> Path | None:
    """Return the ground truth: of --val_label, else of a config of PaddleClas."""
    if args.config is None and args.set:
        raise ConfigError(f"-o {args.set[0]}: overrides a config of PaddleClas; give one by -c FILE")
    if args.config is None or args.val_label is not None:
        return args.val_label  # type: ignore[no-any-return]
    from pipeline.config.paddleclas import read_label_path

    return read_label_path(args.config, args.set)


def _warn_of_other_weights(args: argparse.Namespace, package: Package | None) -> None:
    """Warn where the package that answered is not of the weights that a config names."""
    if args.config is None or package is None:
        return
    from pipeline.config.paddleclas import read_network
    from pipeline.packages.origin import compare_weights

    differs = compare_weights(package, read_network(args.config, args.set).weights)
    if differs is not None:
        console.warning(f"note: {differs}: these are its answers")


def _eval(args: argparse.Namespace) -> None:
    from pipeline.measure.evaluate import evaluate

    check_json_path(args.json)
    check_report_path(args.report)
    say = sayer(args.json)
    evaluation = evaluate(
        args.results,
        datalist=args.datalist,
        label=args.label,
        val_label=_read_labels(args),
        reference=args.reference,
    )
    _warn_of_other_weights(args, evaluation.package)
    if evaluation.facts["sample"]:
        say("sample weights, sample images")
    say("\n".join(evaluation.as_lines()))
    if args.report is not None:
        from pipeline.reports import evaluation as page

        page.write(evaluation, args.report)
        say(f"report in {args.report}")
    print_json(args.json, evaluation.as_dict())
