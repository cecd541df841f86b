"""Sample: the generated images of the embedded default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.config.build_file import BuildConfig
from pipeline.data.sample import SPLITS, write_sample


def identity(cfg: BuildConfig) -> object:
    """Return what this stage's outcome depends on: nothing but its code."""
    return list(SPLITS)


def run(cfg: BuildConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Write `calibration/` and `evaluation/`: class folders with an image each."""
    for split in SPLITS:
        write_sample(out / split, split, per_class=1)
