"""Pixels: the float32 model with the normalisation folded in, so that it reads decoded images directly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from pipeline.artefacts import write_json
from pipeline.config.build_config import BuildConfig
from pipeline.config.vdsp import Triple
from pipeline.onnx_models.graphs import check_model
from pipeline.onnx_models.saving import save_model
from pipeline.quant import pixels
from pipeline.stages.artefact_names import FIGURES, MODEL


@dataclass(frozen=True, kw_only=True)
class Settings:
    mean: Triple  # units of a 0..1 image
    std: Triple


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs."""
    return Settings(mean=cfg.preprocess.mean, std=cfg.preprocess.std)


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the model; one that cannot take pixels stays unchanged, and the build prints why."""
    model = onnx.load(inputs["export"] / MODEL)
    obstacle = pixels.obstacle(model, settings.mean)
    if obstacle is None:
        pixels.fold_normalisation(model, settings.mean, settings.std)
        check_model(model)
    save_model(model, out / MODEL)
    write_json(out / FIGURES, {"input": "uint8 pixels" if obstacle is None else f"float32, since {obstacle}"})
