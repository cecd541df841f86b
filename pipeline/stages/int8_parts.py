"""What the stages that make int8 models read of the earlier ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from pipeline.config.build_file import BuildConfig
from pipeline.config.vdsp import to_vdsp_dict
from pipeline.quant import pixels, placement, qdq
from pipeline.quant.assemble import Parts
from pipeline.quant.observers import ObserverSet
from pipeline.quant.qmath import Range
from pipeline.quant.rounding import read_rounded
from pipeline.stages.artefact_names import OBSERVERS, THRESHOLDS, WEIGHTS


def identity(cfg: BuildConfig) -> object:
    """Return what `load` depends on beside its inputs."""
    quantize = cfg.backend.quantize
    excluded = [list(quantize.skip_conv_layers), list(quantize.exclude_layers)]
    tools = [quantize.quantize_per_channel, quantize.bias_correction, quantize.float_classifier]
    return [tools, excluded, to_vdsp_dict(cfg.preprocess)]


def load(cfg: BuildConfig, inputs: Mapping[str, Path], float32: onnx.ModelProto) -> Parts:
    """Return the parts of the int8 model.

    Raises:
        ConfigError: the build file excludes a layer that the model does not have.
    """
    quantize = cfg.backend.quantize
    ranges = json.loads((inputs["thresholds"] / THRESHOLDS).read_text(encoding="utf-8"))
    means = None
    if quantize.bias_correction:
        observers, images = ObserverSet.load(inputs["calibrate"] / OBSERVERS)
        means = {name: sums / images for name, sums in observers.mean_sums.items()}
    elif pixels.are_input_of(float32):  # see there: without it, the mean pixel would go through weights as they were
        means = {pixels.PIXELS: pixels.LIMIT * np.asarray(cfg.preprocess.mean)}
    return Parts(
        ranges={name: Range(**bounds) for name, bounds in ranges.items()},
        per_channel=quantize.quantize_per_channel,
        rounded=read_rounded(inputs["round"] / WEIGHTS) if "round" in inputs else {},
        means=means,
        float_activations=placement.classifier_inputs(float32) if quantize.float_classifier else frozenset(),
        float_layers=qdq.find_layers(float32, quantize.skip_conv_layers, quantize.exclude_layers),
    )
