"""Quantize: the int8 model from the float32 model and the thresholds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from pipeline.artefacts import write_json
from pipeline.config.build_config import BuildConfig
from pipeline.onnx_models.saving import save_model
from pipeline.quant import pixels, qdq
from pipeline.quant.assemble import assemble
from pipeline.quant.classifier import find_classifier
from pipeline.quant.splitting import read_splits, split
from pipeline.stages import int8_parts
from pipeline.stages.artefact_names import CHECK, ISLANDS, MODEL, float32_model, read_placement

Settings = int8_parts.PartSettings


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs."""
    return int8_parts.take_settings(cfg)


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the int8 model, and a report on its layers."""
    float32 = onnx.load(float32_model(inputs))
    tuned: dict[str, Any] = {}
    if "tune" in inputs:
        tuned = json.loads((inputs["tune"] / ISLANDS).read_text(encoding="utf-8"))
    parts = int8_parts.load(settings, inputs, float32)
    classifier = [node.name for node in find_classifier(float32)]
    float32, parts = split(float32, parts, read_splits(tuned.get("split_activations", {}), parts.ranges))
    parts = parts.leaving(tuned.get("float_activations", ())).adding_in_float(tuned.get("float_sums", ()))
    parts = replace(parts, bfloat16=tuned.get("bfloat16", False))
    made = assemble(float32, parts)
    save_model(made.model, out / MODEL)
    report = {
        "input": "uint8" if pixels.are_input_of(float32) else "float32",
        "layers": qdq.count_quantized(made.model),
        "classifier": classifier,
        "corrected_biases": made.corrected_biases,
        "rounded_weights": made.rounded_weights,
        "accuracy": tuned or None,
        "placement": read_placement(inputs),
    }
    write_json(out / CHECK, report)
