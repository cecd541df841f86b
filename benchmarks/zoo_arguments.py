"""What the programs that make a network of a zoo's build file are asked; both are run by `zoo.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.sample import SAMPLE_CLASSES


def read_arguments(description: str | None, argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of a program; its description is the first line of its docstring."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("build_file", type=Path, metavar="BUILD_FILE", help="cv/classification/*/build_in/build/*.yaml")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", required=True, help="class folders that weights are fitted to"
    )
    parser.add_argument(
        "--fit-images", type=int, metavar="N", default=SAMPLE_CLASSES, help="at most so many of them (%(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="where the network goes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `build`")
    return parser.parse_args(argv)
