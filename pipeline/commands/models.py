"""The `models` command."""

from __future__ import annotations

import argparse
from typing import Any

from pipeline.commands.flags import add_command


def add_models(commands: Any) -> None:
    parser = add_command(commands, "models", _models, "list the known networks", "python -m pipeline models iresnet")
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="list only networks whose library or name contains one of the words"
    )
    parser.add_argument("--latency", action="store_true", help="list published latencies on GPUs, at batch 1, 4 and 8")
    parser.add_argument("--json", action="store_true", help="print everything known about them as JSON")


def _models(args: argparse.Namespace) -> None:
    from pipeline.prepare import model_table

    models = model_table.select(args.words)
    if args.latency and not args.json:
        print("\n".join(model_table.latency_lines(models)))
        return
    for line in [model_table.as_json(models)] if args.json else model_table.lines(models):
        print(line, flush=True)
