"""Quantize: the int8 model from the float32 model and the thresholds, checked against float32 before it is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pipeline import agreement
from pipeline.artefacts import write_json
from pipeline.config.build_file import BuildConfig
from pipeline.data.calibration_list import read_calibration_list
from pipeline.quant import pixels, qdq
from pipeline.quant.assemble import assemble
from pipeline.quant.classifier import find_classifier
from pipeline.stages import int8_parts
from pipeline.stages.artefact_names import CALIBRATION, CHECK, ISLANDS, MODEL, OUTPUTS, float32_model


def identity(cfg: BuildConfig) -> object:
    """Return what this stage's outcome depends on beside its inputs."""
    return int8_parts.identity(cfg)


def run(cfg: BuildConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the int8 model and its comparison with float32.

    Raises:
        DataError: in some runtime it no longer answers as the float32 model does.
    """
    float32 = onnx.load(float32_model(inputs))
    tuned: dict[str, Any] = {}
    if "tune" in inputs:
        tuned = json.loads((inputs["tune"] / ISLANDS).read_text(encoding="utf-8"))
    parts = int8_parts.load(cfg, inputs, float32)
    made = assemble(float32, parts.leaving(tuned.get("float_activations", ())))
    onnx.save(made.model, out / MODEL)
    listed = read_calibration_list(inputs["calibset"] / CALIBRATION)
    raw = pixels.are_input_of(float32)
    batches = agreement.prepare(listed, cfg.preprocess, raw=raw)
    expected = np.load(inputs["calibrate"] / OUTPUTS, allow_pickle=False)[: agreement.IMAGES]
    advice = f"raise backend.quantize.percentile (now {cfg.backend.quantize.percentile}) or set calibrate_mode: max"
    found = agreement.check(out / MODEL, batches, expected, what="int8", advice=advice)
    report = {
        "input": "uint8" if raw else "float32",
        "layers": qdq.count_quantized(made.model),
        "classifier": [node.name for node in find_classifier(float32)],
        "corrected_biases": made.corrected_biases,
        "rounded_weights": made.rounded_weights,
        "agreement": found,
        "accuracy": tuned or None,
    }
    write_json(out / CHECK, report)
