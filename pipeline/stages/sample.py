"""Sample: the generated images of the embedded default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.config.build_file import BuildConfig
from pipeline.data.sample import SAMPLE_CLASSES, write_sample

# Calibration wants every class; for the accuracy every second one does, in half the time of its two passes.
_CLASSES = {"calibration": range(SAMPLE_CLASSES), "evaluation": range(0, SAMPLE_CLASSES, 2)}


def identity(cfg: BuildConfig) -> object:
    """Return what this stage's outcome depends on: nothing but its code."""
    return {split: len(classes) for split, classes in _CLASSES.items()}


def run(cfg: BuildConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Write `calibration/` and `evaluation/`: class folders with an image each."""
    for split, classes in _CLASSES.items():
        write_sample(out / split, split, classes)
