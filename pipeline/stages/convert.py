"""Convert: the model of a float16 or float32 package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from pipeline.config.build_config import BuildConfig
from pipeline.config.choices import Precision
from pipeline.onnx_models.saving import save_model
from pipeline.quant.float16 import to_float16
from pipeline.stages.artefact_names import MODEL


@dataclass(frozen=True, kw_only=True)
class Settings:
    precision: Precision


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs."""
    return Settings(precision=cfg.backend.dtype)


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the model."""
    float32 = inputs["export"] / MODEL
    model = onnx.load(float32)
    save_model(to_float16(model) if settings.precision is Precision.FP16 else model, out / MODEL)
