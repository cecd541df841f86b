"""The `eval` command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands.flags import (
    add_command,
    add_report_flag,
    add_results_flag,
    check_json_path,
    check_report_path,
    print_json,
    sayer,
)


def add_eval(commands: Any) -> None:
    parser = add_command(
        commands,
        "eval",
        _eval,
        "top-1 and top-5 of a run, beside float32",
        "python -m pipeline eval --result_path output",
    )
    add_results_flag(parser, type=Path, required=True, help="results folder of bench")
    parser.add_argument("--datalist", type=Path, metavar="FILE", help="the datalist of the run, to check it against")
    parser.add_argument(
        "--label",
        type=Path,
        metavar="FILE",
        help="class names, a line a class, or as --val_label (default: the package's)",
    )
    parser.add_argument("--val_label", type=Path, metavar="FILE", help="ground truth: lines 'name index'")
    parser.add_argument(
        "--reference",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="run float32 on the same images and compare (default: up to 2000 images)",
    )
    add_report_flag(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file, - for standard output")


def _eval(args: argparse.Namespace) -> None:
    from pipeline.measure.evaluate import evaluate

    check_json_path(args.json)
    check_report_path(args.report)
    evaluation = evaluate(
        args.results, datalist=args.datalist, label=args.label, val_label=args.val_label, reference=args.reference
    )
    say = sayer(args.json)
    if evaluation.facts["sample"]:
        say("sample weights, sample images")
    say("\n".join(evaluation.as_lines()))
    if args.report is not None:
        from pipeline.reports import evaluation as page

        page.write(evaluation, args.report)
        say(f"report in {args.report}")
    print_json(args.json, evaluation.as_dict())
