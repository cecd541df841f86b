"""Round: int8 weights by second order, from the covariances of the layers' inputs on some calibration images.

Independent of the thresholds: another percentile or mode rounds nothing anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from pipeline import preprocess
from pipeline.artefacts import write_json
from pipeline.config.build_file import BuildConfig
from pipeline.config.vdsp import to_vdsp_dict
from pipeline.data.calibration_list import FITTING_IMAGES, read_calibration_list, spread
from pipeline.data.imagenet import Sample
from pipeline.errors import ArtefactError
from pipeline.hardware import available_cores, peak_memory_mib, reset_peak_memory
from pipeline.progress import progress_bar
from pipeline.quant import pixels
from pipeline.quant.rounding import (
    Covariance,
    Layer,
    Rounded,
    layers_of,
    mean_error,
    read_rounded,
    round_weights,
    scales_of,
    write_rounded,
)
from pipeline.runtimes.activations import ActivationReader
from pipeline.stages import int8_parts
from pipeline.stages.artefact_names import CALIBRATION, FIGURES, WEIGHTS, float32_model

# Of each image's output pixels. Measured on resnet18: four times as many gain nothing.
POSITIONS = 64
_SEED = 0
# Covariances in memory at once: 340 MB for the widest layer of wide_resnet50_2, 1.7 GB for all. Layers beyond wait for
# another pass over the images.
_MEMORY = 512 << 20


def identity(cfg: BuildConfig) -> object:
    """Return what this stage's outcome depends on beside its inputs."""
    weights = [cfg.backend.quantize.quantize_per_channel, int8_parts.weight_limit(cfg)]
    return [to_vdsp_dict(cfg.preprocess), weights, FITTING_IMAGES, POSITIONS]


def run(cfg: BuildConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the rounded weights; goes on after the last whole pass of an interrupted run."""
    begun = time.perf_counter()
    reset_peak_memory()
    layers = list(layers_of(onnx.load(float32_model(inputs))))
    listed = read_calibration_list(inputs["calibset"] / CALIBRATION)
    images = [listed[index] for index in spread(len(listed), FITTING_IMAGES)]
    per_channel, limit = cfg.backend.quantize.quantize_per_channel, int8_parts.weight_limit(cfg)
    rounded: dict[str, Rounded] = {}
    passes = list(_passes(layers))
    with progress_bar(len(passes) * len(images) + len(layers), "round weights", "step") as progress:
        for number, some in enumerate(passes):
            partial = out / f"partial_{number}.npz"
            found = _resume(partial)
            if found.keys() == {layer.name for layer in some}:
                progress.update(len(images) + len(some))
            else:
                collected = _collect(cfg, float32_model(inputs), some, images, progress.update)
                found = {}
                for layer in some:
                    scales = scales_of(layer.weights, per_channel=per_channel, limit=limit)
                    seen = collected.pop(layer.name)
                    means = seen.means()
                    rounded_layer = round_weights(layer.weights, scales, seen.result(), limit)
                    lost = mean_error(layer.weights, rounded_layer.weights, scales, means)
                    found[layer.name] = replace(rounded_layer, mean_error=lost)
                    progress.update()
                write_rounded(partial, found)
            rounded.update(found)
    write_rounded(out / WEIGHTS, rounded)
    for leftover in [*out.glob("partial_*.npz"), *out.glob(".*")]:
        leftover.unlink(missing_ok=True)
    figures = {
        "images": len(images),
        "layers": len(layers),
        "seconds": round(time.perf_counter() - begun, 1),
        "peak_memory_mib": round(peak_memory_mib()),
    }
    write_json(out / FIGURES, figures)


def _resume(partial: Path) -> dict[str, Rounded]:
    try:
        return read_rounded(partial) if partial.exists() else {}
    except ArtefactError:
        return {}


def _passes(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Yield the layers in groups whose covariances fit the memory, in graph order."""
    group: list[Layer] = []
    held = 0
    for layer in layers:
        size = 4 * layer.inputs**2
        if group and held + size > _MEMORY:
            yield group
            group, held = [], 0
        group.append(layer)
        held += size
    if group:
        yield group


def _collect(
    cfg: BuildConfig,
    path: Path,
    layers: Sequence[Layer],
    images: Sequence[Sample],
    advance: Callable[[], object],
) -> dict[str, Covariance]:
    """Return the covariance of each layer's inputs over the images.

    The model is loaded for that and let go of: factoring covariances takes more memory than anything else here.
    """
    model = onnx.load(path)
    reader = ActivationReader(model, [layer.source for layer in layers], threads=available_cores())
    collected = {layer.name: Covariance(layer.inputs) for layer in layers}
    random = np.random.default_rng(_SEED)
    raw = pixels.are_input_of(model)
    del model
    for image in images:
        values = reader.read(preprocess.load(cfg.preprocess, image.source.content(), raw=raw))
        for layer in layers:
            collected[layer.name].add(layer.columns(values[layer.source], POSITIONS, random))
        advance()
    return collected
