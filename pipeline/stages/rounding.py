"""Round: int8 weights by second order, from the covariances of the layers' inputs on some calibration images.

Independent of the thresholds: another percentile or mode repeats no rounding.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from threadpoolctl import threadpool_limits

from pipeline.artefacts import write_json
from pipeline.config.build_config import BuildConfig
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.data.calibration_list import FITTING_IMAGES, choose_evenly, read_calibration_list
from pipeline.data.imagenet import Sample
from pipeline.errors import ArtefactError
from pipeline.host.hardware import available_cores, peak_memory_mib, release_memory, reset_peak_memory
from pipeline.host.threads import thread_pool
from pipeline.quant import pixels
from pipeline.quant.bfloat16 import Values
from pipeline.quant.counting import TAIL_IMAGES, Counter, Counts
from pipeline.quant.covariance import Covariance, GroupCovariance
from pipeline.quant.graphs import activation_shapes
from pipeline.quant.int8_weights import scales_of
from pipeline.quant.layers import Layer, layers_of, mapped
from pipeline.quant.rounding import (
    BLOCK,
    WIDEST,
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
from pipeline.runtimes.activations import Arithmetic, Image
from pipeline.runtimes.base import Placement
from pipeline.runtimes.readers import computes_bfloat16, open_reader, preferred
from pipeline.stages.artefact_names import (
    CALIBRATION,
    FIGURES,
    OBSERVERS,
    OUTPUTS,
    WEIGHTS,
    float32_model,
    read_arithmetic,
    write_arithmetic,
)
from pipeline.stages.settings import unkeyed
from pipeline.terminal.progress import progress_bar

# Output positions of each image, of FITTING_IMAGES images. Measured on resnet18: twice as many gain 0.05 dB of the
# scores' SQNR, half lose 0.2.
POSITIONS = 32
_SEED = 0
# Bytes of layers' inputs in memory at once: all of wide_resnet50_2 take 0.8 GB. Further layers wait for another pass.
_MEMORY = 1 << 30
_LARGE = 64 << 20  # bytes of weights that wait in a file: those of the fully connected layers of a VGG
_SECONDS_BETWEEN_SAVES = 10.0
# Layers that are rounded at once, each of which may take 340 MB; further cores share the work within a layer.
_AT_ONCE = 2

Held = Covariance | GroupCovariance | list[Values]  # of a layer's inputs: covariances, or each image's activation


@dataclass(frozen=True, kw_only=True)
class Settings:
    preprocess: PreprocessSpec
    per_channel: bool  # a scale per output channel, or one per tensor
    images: int  # at most this many calibration images are used
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
    model = onnx.load(float32_model(inputs))
    layers = [mapped(layer, out, _LARGE) for layer in layers_of(model)]
    sizes = _sizes(layers, activation_shapes(model), len(images))
    macs = measure_network(model).macs
    del model
    rounded: dict[str, Rounded] = {}
    passes = list(_passes(layers, sizes))
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
                seen = functools.partial(progress.update, each.image)
                counting = _Counting(len(listed), out) if number == 0 else None
                arithmetic = preferred(settings.bfloat16, len(images), read_arithmetic(inputs))
                held = _collect(settings, float32_model(inputs), some, sizes, images, arithmetic, counting, seen)
                release_memory()
                for name in _round_in_turn(settings, some, held, found, partial):
                    progress.update(each.layers[name])
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


@dataclass(frozen=True)
class _Work:
    """What a pass takes, in 1e6 multiply-accumulates: a layer of 4608 inputs takes 60 times one of 256.

    Whole numbers, so that the parts make exactly the whole.
    """

    image: int  # to infer an image and sum the covariances of its activations
    layers: Mapping[str, int]  # to round each

    @staticmethod
    def of(layers: Sequence[Layer], macs: float, positions: int) -> _Work:
        """Return the work of some layers, of a network of `macs` multiply-accumulates an image."""
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


@dataclass(frozen=True)
class _Size:
    """Return the memory of a layer's inputs over all images, in bytes, in the smaller of both forms."""

    covariance: int
    activations: int

    @property
    def least(self) -> int:
        return min(self.covariance, self.activations)


def _sizes(layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]], images: int) -> dict[str, _Size]:
    sizes = {}
    for layer in layers:
        values = math.prod(shapes.get(layer.source, ())[1:])  # of an image; 0 or 1 where that is not known
        covariance = 4 * layer.groups * layer.inputs**2
        activations = 4 * images * values if values > 1 else covariance
        sizes[layer.name] = _Size(covariance, min(activations, covariance - 1) if _is_wide(layer) else activations)
    return sizes


def _outgrows(layer: Layer, activations: int) -> bool:
    """Tell whether the activations of all images, in bytes, take more than a covariance: shapes do not tell how many
    rows the products of an attention network have for an image, since its tokens lie in the axis of the batch."""
    return not _is_wide(layer) and activations > 4 * layer.groups * layer.inputs**2


def _passes(layers: Sequence[Layer], sizes: Mapping[str, _Size]) -> Iterator[list[Layer]]:
    """Yield the layers in groups whose inputs fit the memory, in graph order."""
    group: list[Layer] = []
    held = 0
    for layer in layers:
        size = sizes[layer.name].least
        if group and held + size > _MEMORY:
            yield group
            group, held = [], 0
        group.append(layer)
        held += size
    if group:
        yield group


@dataclass(frozen=True)
class _Counting:
    """What the first pass counts for the calibration."""

    listed: int  # images of the whole list
    out: Path  # folder for the counts


def _collect(
    settings: Settings,
    path: Path,
    layers: Sequence[Layer],
    sizes: Mapping[str, _Size],
    images: Sequence[Sample],
    arithmetic: Arithmetic | None,
    counting: _Counting | None,
    advance: Callable[[], object],
) -> dict[str, Held]:
    """Return the covariance or the activations of each layer's inputs over the images.

    The model is loaded only for this: factoring covariances later needs more memory than anything else here.
    """
    model = onnx.load(path)
    raw, counter = pixels.are_input_of(model), Counter(model)
    del model
    wanted = [layer.source for layer in layers] + (counter.read if counting else [])
    held: dict[str, Held] = {}
    for layer in layers:
        size = sizes[layer.name]
        held[layer.name] = [] if size.activations < size.covariance else _covariance(layer)
    random = np.random.default_rng(_SEED)

    def prepare(image: Sample) -> Image:
        return preprocess.load(settings.preprocess, image.source.content(), raw=raw)

    reader = open_reader(path, wanted, Placement(1, settings.cores), prepare(images[0]), arithmetic)

    def read(image: Sample) -> Mapping[str, Values]:
        return reader.read(prepare(image))

    counts = Counts(counter.observed, counting.listed if counting else 1)
    if counting:
        counter.set_tails(counts, (read(images[index]) for index in choose_evenly(len(images), TAIL_IMAGES)))
    with thread_pool(settings.workers) as pool:
        for image in images:
            values = read(image)
            counted = pool.submit(counter.count, counts, values, averaged=True) if counting else None
            summed = []
            for layer in layers:
                some = held[layer.name]
                if some == [] and _outgrows(layer, len(images) * values[layer.source].nbytes):
                    some = held[layer.name] = _covariance(layer)
                if isinstance(some, list):
                    some.append(values[layer.source].copy())
                else:
                    summed.append((some, layer.columns(values[layer.source], settings.positions, random)))
            summed.sort(key=lambda each: each[1].shape[1], reverse=True)  # so that no thread is left with a wide one
            list(pool.map(lambda each: each[0].add(each[1]), summed))
            if counted is not None:
                counts.add(*counted.result())
            advance()
    if counting:
        counts.save(counting.out / OBSERVERS, counting.out / OUTPUTS)
        write_arithmetic(counting.out, reader.arithmetic)
    reader.close()
    return held


def _round_in_turn(
    settings: Settings,
    layers: Sequence[Layer],
    held: dict[str, Held],
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


def _covariance(layer: Layer) -> Covariance | GroupCovariance:
    return Covariance(layer.inputs) if layer.groups == 1 else GroupCovariance(layer.groups, layer.inputs)


def _is_wide(layer: Layer) -> bool:
    return layer.groups == 1 and layer.inputs > WIDEST


def _round(settings: Settings, layer: Layer, held: Held) -> Rounded:
    """Round a layer's weights, consuming what is held of its inputs."""
    matrix, pairs = layer.weights.matrix, layer.weights.pairs
    scales = scales_of(matrix, pairs, per_channel=settings.per_channel)
    if _is_wide(layer):
        assert isinstance(held, list)
        return _round_wide(layer, held, scales, settings.positions)
    if isinstance(held, list):
        seen, random = _covariance(layer), np.random.default_rng(_SEED)
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
        random = np.random.default_rng(_SEED)
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
