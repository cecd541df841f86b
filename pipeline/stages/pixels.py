"""Pixels: the float32 model again, its normalisation folded in, so that it reads images as they are decoded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from pipeline.artefacts import write_json
from pipeline.config.build_file import BuildConfig
from pipeline.quant import pixels
from pipeline.stages.artefact_names import FIGURES, MODEL


def identity(cfg: BuildConfig) -> object:
    """Return what this stage's outcome depends on beside its inputs."""
    return [cfg.preprocess.mean, cfg.preprocess.std]


def run(cfg: BuildConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the model; one that cannot take pixels stays as it is, and the build says why."""
    model = onnx.load(inputs["export"] / MODEL)
    obstacle = pixels.obstacle(model, cfg.preprocess.mean)
    if obstacle is None:
        pixels.fold_normalisation(model, cfg.preprocess.mean, cfg.preprocess.std)
        onnx.checker.check_model(model)
    onnx.save(model, out / MODEL)
    write_json(out / FIGURES, {"input": "uint8 pixels" if obstacle is None else f"float32, since {obstacle}"})
