"""The `doctor` command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands.flags import add_command
from pipeline.errors import PipelineError
from pipeline.terminal.counts import counted


def add_doctor(commands: Any) -> None:
    parser = add_command(
        commands,
        "doctor",
        _doctor,
        "check whether this machine can build and run packages, and say what to install",
        "python -m pipeline doctor",
    )
    parser.add_argument(
        "--workspace", type=Path, default=Path("deploy_weights"), metavar="DIR", help="folder of the builds"
    )


def _doctor(args: argparse.Namespace) -> None:
    from pipeline.prepare import doctor

    findings = doctor.examine(args.workspace)
    print("\n".join(map(str, findings)))
    faults = doctor.faults(findings)
    if faults:
        raise PipelineError(f"this machine is not fit: {counted(faults, 'fault')} to fix, see above")
    print("this machine can build and run packages")
