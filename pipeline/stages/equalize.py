"""Equalize: the float32 model with its channels rescaled to similar ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from pipeline.artefacts import write_json
from pipeline.config.build_file import BuildConfig
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.data.calibration_list import FITTING_IMAGES, choose_evenly, read_calibration_list
from pipeline.host.hardware import available_cores
from pipeline.quant import equalization, gate_scaling, pixels, placement
from pipeline.runtimes.activations import ActivationReader
from pipeline.stages.artefact_names import CALIBRATION, FIGURES, MODEL, float32_model
from pipeline.stages.settings import unkeyed
from pipeline.terminal.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class Settings:
    preprocess: PreprocessSpec
    images: int  # at most this many calibration images are used for the ranges
    strength: float
    cores: int = unkeyed()  # they divide the work within an image


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs."""
    return Settings(
        preprocess=cfg.preprocess, images=FITTING_IMAGES, strength=equalization.STRENGTH, cores=available_cores()
    )


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the rescaled model."""
    model = onnx.load(float32_model(inputs))
    raw = pixels.are_input_of(model)
    observed = placement.observed_tensors(model)
    axes = dict.fromkeys(gate_scaling.gated_tensors(model, observed), 1)
    axes |= equalization.scaled_tensors(model, observed)
    listed = read_calibration_list(inputs["calibset"] / CALIBRATION)
    images = [listed[index] for index in choose_evenly(len(listed), settings.images)]
    del model  # while its activations are read; a session holds the weights too
    reader = ActivationReader(float32_model(inputs), list(axes), threads=settings.cores)
    largest: dict[str, np.ndarray] = {}
    with progress_bar(len(images), "channel ranges", "img", span=(0, 0.95)) as progress:
        for image in images:
            values = reader.read(preprocess.load(settings.preprocess, image.source.content(), raw=raw))
            for name, axis in axes.items():
                seen = equalization.channel_extremes(values[name], axis)
                largest[name] = np.maximum(largest.get(name, 0.0), seen)
            progress.update()
    del reader
    model = onnx.load(float32_model(inputs))
    spread_of = equalization.equalize(model, largest)
    gates = gate_scaling.scale_gates(model, largest)
    onnx.checker.check_model(model)
    onnx.save(model, out / MODEL)
    widest = round(max(spread_of.values(), default=1.0), 1)
    write_json(out / FIGURES, {"streams": len(spread_of), "widest": widest, "gates": len(gates)})
