"""Convert: the model of a float16 or float32 package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from pipeline.config.build_file import BuildConfig, Precision
from pipeline.quant.float16 import to_float16
from pipeline.stages.artefact_names import MODEL


def identity(cfg: BuildConfig) -> object:
    """Return what this stage's outcome depends on beside its inputs."""
    return cfg.backend.dtype.value


def run(cfg: BuildConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the model."""
    float32 = inputs["export"] / MODEL
    model = onnx.load(float32)
    onnx.save(to_float16(model) if cfg.backend.dtype is Precision.FP16 else model, out / MODEL)
