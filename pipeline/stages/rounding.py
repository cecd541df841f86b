"""Round: int8 weights by second order, from the covariances of the layers' inputs on some calibration images.

Independent of the thresholds: another percentile or mode repeats no rounding.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from threadpoolctl import threadpool_limits

from pipeline.artefacts import write_json
from pipeline.config.build_config import BuildConfig
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data.calibration_list import FITTING_IMAGES, choose_evenly, read_calibration_list
from pipeline.errors import ArtefactError
from pipeline.host.hardware import available_cores, peak_memory_mib, release_memory, reset_peak_memory
from pipeline.host.threads import thread_pool
from pipeline.proof import agreement
from pipeline.quant import pixels
from pipeline.quant.bfloat16 import Values
from pipeline.quant.counting import Counter
from pipeline.quant.covariance import Covariance
from pipeline.quant.graphs import activation_shapes
from pipeline.quant.int8_weights import scales_of
from pipeline.quant.layers import Layer, layers_of, mapped, without_weights
from pipeline.quant.rounding import (
    BLOCK,
    Float32,
    Rounded,
    mean_error,
    read_rounded,
    round_blocks,
    round_groups,
    round_weights,
    write_rounded,
)
from pipeline.quant.work import COLLECTING, measure_network, rounding_work
from pipeline.runtimes.readers import computes_bfloat16, preferred
from pipeline.stages import rounding_inputs
from pipeline.stages.artefact_names import (
    CALIBRATION,
    FIGURES,
    WEIGHTS,
    float32_model,
    read_arithmetic,
)
from pipeline.stages.settings import unkeyed
from pipeline.terminal.progress import progress_bar

# Output positions of each image, of FITTING_IMAGES images. Measured on resnet18: twice as many gain 0.05 dB of the
# scores' SQNR, half lose 0.2.
POSITIONS = 32
_LARGE = 64 << 20  # bytes of weights that wait in a file: those of the fully connected layers of a VGG
_SECONDS_BETWEEN_SAVES = 10.0
# Layers that are rounded at once, each of which may take 340 MB; further cores share the work within a layer.
_AT_ONCE = 2
# Bytes of a covariance before which freed memory is returned: the C library keeps what other layers had, 700 MB of
# wide_resnet50_2.
_RELEASING = 128 << 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    preprocess: PreprocessSpec
    per_channel: bool  # a scale per output channel, or one per tensor
    images: int  # at most this many calibration images are used
    goal: bool  # of the accuracy: further images are used, which no model is judged on
    positions: int  # of each image's output pixels; of fewer images than `images`, more of each
    bfloat16: bool  # allowed for the activations
    cores: int = unkeyed()  # they divide the work within an image, and the layers among them

    @property
    def workers(self) -> int:
        """Threads that each work on a layer of their own."""
        return min(self.cores, _AT_ONCE)


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs."""
    return Settings(
        preprocess=cfg.preprocess,
        per_channel=cfg.backend.quantize.quantize_per_channel,
        images=FITTING_IMAGES,
        goal=cfg.accuracy is not None,
        positions=POSITIONS,
        bfloat16=computes_bfloat16(),
        cores=available_cores(),
    )


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the rounded weights, and what calibration counts of the same images, which need no second pass then.

    Resumes after the layers that an interrupted run has rounded.
    """
    begun = time.perf_counter()
    reset_peak_memory()
    listed = read_calibration_list(inputs["calibset"] / CALIBRATION)
    images = [listed[index] for index in choose_evenly(len(listed), settings.images)]
    settings = replace(settings, positions=settings.positions * settings.images // len(images))
    counted = len(images)
    if settings.goal:
        images += [listed[index] for index in agreement.choose_further(len(listed))]
    model = onnx.load(float32_model(inputs))
    layers = [without_weights(layer) for layer in layers_of(model)]
    sizes = rounding_inputs.sizes_of(layers, activation_shapes(model), len(images))
    macs = measure_network(model).macs
    counter, raw = Counter(model), pixels.are_input_of(model)
    del model
    rounded: dict[str, Rounded] = {}
    passes = list(rounding_inputs.passes(layers, sizes))
    work = [_Work.of(some, macs, settings.positions) for some in passes]
    total = sum(each.image * len(images) + sum(each.layers.values()) for each in work)
    with (
        # Layers have threads of their own, and OpenBLAS's wait busily between two products, 20 ms each time.
        threadpool_limits(settings.cores // settings.workers, user_api="blas"),
        progress_bar(total, "round weights", "MMAC", span=(0, 1)) as progress,
    ):
        for number, (some, each) in enumerate(zip(passes, work, strict=True)):
            partial = out / f"partial_{number}.npz"
            found = _resume(partial, some)
            progress.update(sum(each.layers[name] for name in found))
            if len(found) == len(some):
                progress.update(each.image * len(images))
            else:
                counting = rounding_inputs.Counting(len(listed), counted, out) if number == 0 else None
                reading = _reading(settings, inputs, counter, raw, len(images), again=number + 1 < len(passes))
                seen = functools.partial(progress.update, each.image)
                held = rounding_inputs.collect(reading, some, sizes, images, counting, seen)
                release_memory()
                for name in _round_in_turn(settings, _with_weights(some, inputs, out), held, found, partial):
                    progress.update(each.layers[name])
            rounded.update(found)
    write_rounded(out / WEIGHTS, rounded)
    for leftover in [*out.glob("partial_*.npz"), *out.glob(".*")]:
        leftover.unlink(missing_ok=True)
    seconds, memory = round(time.perf_counter() - begun, 1), round(peak_memory_mib())
    figures = {"images": len(images), "layers": len(layers), "seconds": seconds, "peak_memory_mib": memory}
    write_json(out / FIGURES, figures)


def _reading(
    settings: Settings, inputs: Mapping[str, Path], counter: Counter, raw: bool, images: int, *, again: bool
) -> rounding_inputs.Reading:
    """Return how a pass reads the activations of so many images."""
    return rounding_inputs.Reading(
        model=float32_model(inputs),
        counter=counter,
        raw=raw,
        preprocess=settings.preprocess,
        arithmetic=preferred(settings.bfloat16, images, read_arithmetic(inputs)),
        positions=settings.positions,
        cores=settings.cores,
        workers=settings.workers,
        again=again,
    )


def _with_weights(layers: Sequence[Layer], inputs: Mapping[str, Path], out: Path) -> list[Layer]:
    """Return some layers with their weights, which are in no memory while a reader holds those of the model."""
    names = {layer.name for layer in layers}
    read = layers_of(onnx.load(float32_model(inputs)))
    return [mapped(layer, out, _LARGE) for layer in read if layer.name in names]


@dataclass(frozen=True)
class _Work:
    """What a pass takes, in 1e6 multiply-accumulates: a layer of 4608 inputs takes 60 times one of 256.

    Whole numbers, so that the parts make exactly the whole.
    """

    image: int  # to infer an image and sum the covariances of its activations
    layers: Mapping[str, int]  # to round each

    @staticmethod
    def of(layers: Sequence[Layer], macs: float, positions: int) -> _Work:
        """Return the work of some layers, of a network of `macs` multiply-accumulates per image."""
        summing = sum(positions * layer.groups * layer.inputs**2 for layer in layers)
        rounding = {each.name: rounding_work(len(each.weights.matrix), each.inputs, each.groups) for each in layers}
        image = round(COLLECTING * (macs + summing) / 1e6)
        return _Work(image, {name: round(work / 1e6) for name, work in rounding.items()})


def _resume(partial: Path, layers: Sequence[Layer]) -> dict[str, Rounded]:
    """Return the first layers, those that an interrupted run has rounded."""
    try:
        found = read_rounded(partial) if partial.exists() else {}
    except ArtefactError:
        return {}
    return found if list(found) == [layer.name for layer in layers[: len(found)]] else {}


def _round_in_turn(
    settings: Settings,
    layers: Sequence[Layer],
    held: dict[str, rounding_inputs.Held],
    found: dict[str, Rounded],
    partial: Path,
) -> Iterator[str]:
    """Round the layers that are not in `found`, and put them there, yielding each; save on the way and last."""

    def round_one(layer: Layer) -> Rounded:
        return _round(settings, layer, held.pop(layer.name))

    saved = time.perf_counter()
    left = layers[len(found) :]
    with thread_pool(settings.workers) as pool:
        for layer, rounded in zip(left, pool.map(round_one, left), strict=True):
            found[layer.name] = rounded
            yield layer.name
            if time.perf_counter() - saved > _SECONDS_BETWEEN_SAVES:
                write_rounded(partial, found)
                saved = time.perf_counter()
    write_rounded(partial, found)


def _round(settings: Settings, layer: Layer, held: rounding_inputs.Held) -> Rounded:
    """Round a layer's weights, consuming what is held of its inputs."""
    matrix, pairs = layer.weights.matrix, layer.weights.pairs
    if 4 * layer.inputs**2 > _RELEASING:
        release_memory()
    scales = scales_of(matrix, pairs, per_channel=settings.per_channel)
    if rounding_inputs.is_wide(layer):
        assert isinstance(held, list)
        return _round_wide(layer, held, scales, settings.positions)
    if isinstance(held, list):
        seen, random = rounding_inputs.covariance_of(layer), np.random.default_rng(rounding_inputs.SEED)
        while held:
            seen.add(layer.columns(held.pop(0), settings.positions, random))
    else:
        seen = held
    means = seen.means()
    rounded = (round_weights if layer.groups == 1 else round_groups)(matrix, scales, seen.result(), pairs)
    return replace(rounded, mean_error=mean_error(matrix, rounded.weights, scales, means))


def _round_wide(layer: Layer, held: list[Values], scales: Float32, positions: int) -> Rounded:
    """Round the weights of a layer with too many inputs for one covariance."""
    means = []

    def covariance(block: slice) -> Float32:
        random = np.random.default_rng(rounding_inputs.SEED)
        columns = [layer.columns(values, positions, random)[:, block] for values in held]
        seen = Covariance(columns[0].shape[1])
        for some in columns:
            seen.add(some.copy())
        means.append(seen.means())
        return seen.result()

    pair = 2 * math.prod(layer.kernel or (1,))  # channels that are neighbours stay together
    matrix, width = layer.weights.matrix, max(1, BLOCK // pair) * pair
    rounded = round_blocks(matrix, scales, covariance, layer.weights.pairs, width)
    return replace(rounded, mean_error=mean_error(matrix, rounded.weights, scales, np.concatenate(means)))
