"""What the stages that make int8 models read of the earlier ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from pipeline.config.build_config import BuildConfig
from pipeline.config.vdsp import Triple
from pipeline.quant import pixels, placement, qdq
from pipeline.quant.assemble import Parts
from pipeline.quant.observers import ObserverSet
from pipeline.quant.qmath import Range
from pipeline.quant.rounding import read_rounded
from pipeline.stages.artefact_names import OBSERVERS, WEIGHTS, read_placement, thresholds_file


@dataclass(frozen=True, kw_only=True)
class PartSettings:
    """What `load` depends on beside its inputs; fields as in section `backend.quantize` of a build file."""

    per_channel: bool
    bias_correction: bool
    float_classifier: bool
    skip_conv_layers: tuple[int | str, ...]
    exclude_layers: tuple[int | str, ...]
    mean: Triple  # of the normalisation, units of a 0..1 image


def take_settings(cfg: BuildConfig) -> PartSettings:
    """Return what `load` depends on beside its inputs."""
    quantize = cfg.backend.quantize
    return PartSettings(
        per_channel=quantize.quantize_per_channel,
        bias_correction=quantize.bias_correction,
        float_classifier=quantize.float_classifier,
        skip_conv_layers=quantize.skip_conv_layers,
        exclude_layers=quantize.exclude_layers,
        mean=cfg.preprocess.mean,
    )


def load(settings: PartSettings, inputs: Mapping[str, Path], float32: onnx.ModelProto) -> Parts:
    """Return the parts of the int8 model.

    Raises:
        ConfigError: the build file excludes a layer that the model does not have.
    """
    ranges = json.loads(thresholds_file(inputs).read_text(encoding="utf-8"))
    means = None
    if settings.bias_correction:
        means = ObserverSet.load(inputs["calibrate"] / OBSERVERS)[0].means()
    elif pixels.are_input_of(float32):  # see there: without it, the mean pixel would go through weights as they were
        means = {pixels.PIXELS: pixels.mean_input(float32, settings.mean)}
    parts = Parts(
        ranges={name: Range(**bounds) for name, bounds in ranges.items()},
        per_channel=settings.per_channel,
        rounded=read_rounded(inputs["round"] / WEIGHTS) if "round" in inputs else {},
        means=means,
        float_activations=placement.classifier_inputs(float32) if settings.float_classifier else frozenset(),
        float_layers=qdq.find_layers(float32, settings.skip_conv_layers, settings.exclude_layers),
    )
    return placed_as(parts, read_placement(inputs))


def placed_as(parts: Parts, placed: Mapping[str, bool]) -> Parts:
    """Return the parts with the placement of quantizers that stage `place` decided, or tries."""
    return replace(
        parts,
        gates_in_float=placed.get("gates_in_float", False),
        onnxruntime_gates=placed.get("onnxruntime_gates", False),
        scores_in_int8=placed.get("scores_in_int8", False),
    )
