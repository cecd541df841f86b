"""Sample: the generated images of the embedded default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.build_config import BuildConfig
from pipeline.data.sample import SAMPLE_CLASSES, write_sample


@dataclass(frozen=True, kw_only=True)
class Settings:
    calibration_step: int = 1  # calibration needs an image of every class
    evaluation_step: int = 2  # every second class suffices for the accuracy, and halves the time


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on: nothing of the build file."""
    return Settings()


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write `calibration/` and `evaluation/`: class folders with an image each."""
    for split, step in (("calibration", settings.calibration_step), ("evaluation", settings.evaluation_step)):
        write_sample(out / split, split, range(0, SAMPLE_CLASSES, step))
