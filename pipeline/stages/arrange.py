"""Arrange: the float32 model with its channels reordered, so that bounding int8 weights costs little accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from pipeline.artefacts import write_json
from pipeline.config.build_config import BuildConfig
from pipeline.onnx_models.graphs import check_model
from pipeline.onnx_models.saving import save_model
from pipeline.quant import placement
from pipeline.quant.channel_order import order_channels
from pipeline.quant.layers import weights_of
from pipeline.stages.artefact_names import FIGURES, MODEL, float32_model


@dataclass(frozen=True, kw_only=True)
class Settings:
    float_classifier: bool  # the last layer stays float32


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs."""
    return Settings(float_classifier=cfg.backend.quantize.float_classifier)


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the model with its channels in another order."""
    model = onnx.load(float32_model(inputs))
    in_float = placement.classifier_inputs(model) if settings.float_classifier else frozenset()
    sources = placement.range_sources(model)
    readers = {node.name for node in model.graph.node if sources.get(node.input[0]) in in_float}
    layers = {weights.layer for weights in weights_of(model)} - readers
    changed = order_channels(model, layers)
    check_model(model)
    save_model(model, out / MODEL)
    write_json(out / FIGURES, {"streams": changed})
