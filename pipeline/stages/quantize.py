"""Quantize: the int8 model from the float32 model and the thresholds, checked against float32 before it is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from pipeline import agreement
from pipeline.artefacts import write_json
from pipeline.config.build_file import BuildConfig
from pipeline.config.vdsp import to_vdsp_dict
from pipeline.data.calibration_list import read_calibration_list
from pipeline.quant import qdq
from pipeline.quant.bias_correction import correct_biases
from pipeline.quant.observers import ObserverSet
from pipeline.quant.qmath import Range
from pipeline.quant.rounding import install_weights, read_rounded
from pipeline.stages.artefact_names import (
    CALIBRATION,
    CHECK,
    MODEL,
    OBSERVERS,
    OUTPUTS,
    THRESHOLDS,
    WEIGHTS,
    float32_model,
)


def identity(cfg: BuildConfig) -> object:
    """Return what this stage's outcome depends on beside its inputs."""
    quantize = cfg.backend.quantize
    excluded = [list(quantize.skip_conv_layers), list(quantize.exclude_layers)]
    return [quantize.quantize_per_channel, quantize.bias_correction, excluded, to_vdsp_dict(cfg.preprocess)]


def run(cfg: BuildConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the int8 model and its comparison with float32.

    Raises:
        DataError: in some runtime it no longer answers as the float32 model does.
    """
    ranges = json.loads((inputs["thresholds"] / THRESHOLDS).read_text(encoding="utf-8"))
    quantize = cfg.backend.quantize
    float32 = onnx.load(float32_model(inputs))
    model = qdq.insert_qdq(
        float32,
        {name: Range(**bounds) for name, bounds in ranges.items()},
        per_channel=quantize.quantize_per_channel,
        float_layers=qdq.find_layers(float32, quantize.skip_conv_layers, quantize.exclude_layers),
    )
    rounded = install_weights(model, float32, read_rounded(inputs["round"] / WEIGHTS)) if "round" in inputs else 0
    corrected: dict[str, float] = {}
    if quantize.bias_correction:
        observers, images = ObserverSet.load(inputs["calibrate"] / OBSERVERS)
        means = {name: sums / images for name, sums in observers.mean_sums.items()}
        corrected = correct_biases(model, float32, means)
    onnx.save(model, out / MODEL)
    batches = agreement.prepare(read_calibration_list(inputs["calibset"] / CALIBRATION), cfg.preprocess)
    expected = np.load(inputs["calibrate"] / OUTPUTS, allow_pickle=False)[: agreement.IMAGES]
    advice = f"raise backend.quantize.percentile (now {quantize.percentile}) or set calibrate_mode: max"
    found = agreement.check(out / MODEL, batches, expected, what="int8", advice=advice)
    write_json(
        out / CHECK,
        {
            "layers": qdq.count_quantized(model),
            "corrected_biases": len(corrected),
            "rounded_weights": rounded,
            "agreement": found,
        },
    )
