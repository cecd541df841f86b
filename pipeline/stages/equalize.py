"""Equalize: the float32 model with its channels rescaled to similar ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from pipeline.artefacts import write_json
from pipeline.config.build_config import BuildConfig
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import prepared
from pipeline.data.calibration_list import EQUALIZING_IMAGES, FITTING_IMAGES, choose_evenly, read_calibration_list
from pipeline.data.imagenet import Sample
from pipeline.host.hardware import available_cores, release_memory
from pipeline.host.threads import thread_pool
from pipeline.onnx_models.graphs import check_model
from pipeline.onnx_models.saving import save_model
from pipeline.quant import equalization, gate_scaling, pixels, placement
from pipeline.runtimes.activations import Image, Reader
from pipeline.runtimes.base import Placement
from pipeline.runtimes.readers import computes_bfloat16, open_reader, preferred
from pipeline.stages.artefact_names import CALIBRATION, FIGURES, MODEL, float32_model, write_arithmetic
from pipeline.stages.settings import unkeyed
from pipeline.terminal.progress import progress_bar

_MAX_WORKERS = 8  # threads that each run one image at a time and hold its activations

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Settings:
    preprocess: PreprocessSpec
    images: int  # at most this many calibration images are used for the ranges of a network without gates
    strength: float
    bfloat16: bool  # allowed: factors do not depend on the last bits
    cores: int = unkeyed()  # they divide the images among them


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs."""
    return Settings(
        preprocess=cfg.preprocess,
        images=EQUALIZING_IMAGES,
        strength=equalization.STRENGTH,
        bfloat16=computes_bfloat16(),
        cores=available_cores(),
    )


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the rescaled model."""
    model = onnx.load(float32_model(inputs))
    raw = pixels.are_input_of(model)
    observed = placement.observed_tensors(model)
    gated = gate_scaling.gated_tensors(model, observed)
    axes = dict.fromkeys(gated, 1) | equalization.scaled_tensors(model, observed)
    listed = read_calibration_list(inputs["calibset"] / CALIBRATION)
    fitting = choose_evenly(len(listed), FITTING_IMAGES)  # of those that rounding reads, which keeps what was prepared
    # Few images were tried of CNNs alone; factors of gates are other powers.
    wanted = settings.images if not gated and set(axes.values()) == {1} else len(fitting)
    images = [listed[fitting[index]] for index in choose_evenly(len(fitting), wanted)]
    del model  # while its activations are read; a session holds the weights too

    def prepare(image: Sample) -> Image:
        return prepared.load(settings.preprocess, image.source, raw=raw, again=True)  # for rounding

    largest: dict[str, Float64] = {}
    if axes:
        arithmetic = preferred(settings.bfloat16, len(images))
        streams = Placement(min(settings.cores, _MAX_WORKERS), settings.cores)
        reader = open_reader(float32_model(inputs), list(axes), streams, prepare(images[0]), arithmetic)
        write_arithmetic(out, reader.arithmetic)
        largest = _largest(reader, streams.streams, axes, images, prepare)
        reader.close()
        release_memory()
    model = onnx.load(float32_model(inputs))
    spread_of = equalization.equalize(model, largest)
    gates = gate_scaling.scale_gates(model, largest)
    check_model(model)
    save_model(model, out / MODEL)
    widest = round(max(spread_of.values(), default=1.0), 1)
    write_json(out / FIGURES, {"streams": len(spread_of), "widest": widest, "gates": len(gates)})


def _largest(
    reader: Reader, workers: int, axes: Mapping[str, int], images: Sequence[Sample], prepare: Callable[[Sample], Image]
) -> dict[str, Float64]:
    """Return the largest magnitude of each channel of some tensors over the images.

    Args:
        axes: the axis of the channels, by the tensor's name.
    """

    def measure(image: Sample) -> dict[str, Float64]:
        values = reader.read(prepare(image))
        return {name: equalization.channel_extremes(values[name], axis) for name, axis in axes.items()}

    largest: dict[str, Float64] = {}
    with thread_pool(workers) as pool, progress_bar(len(images), "channel ranges", "img", span=(0, 0.95)) as progress:
        for found in pool.map(measure, images):
            for name, seen in found.items():
                largest[name] = np.maximum(largest.get(name, 0.0), seen)
            progress.update()
    return largest
