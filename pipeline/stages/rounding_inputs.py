"""What rounding needs of the layers' inputs: their covariances, or the activations where those take less memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import prepared
from pipeline.data.calibration_list import choose_evenly
from pipeline.data.imagenet import Sample
from pipeline.host.threads import one_ahead, thread_pool
from pipeline.quant.bfloat16 import Values
from pipeline.quant.counting import TAIL_IMAGES, Counter, Counts, Float32, Means
from pipeline.quant.covariance import Covariance, GroupCovariance
from pipeline.quant.layers import Layer
from pipeline.quant.rounding import WIDEST
from pipeline.runtimes.activations import Arithmetic, Image
from pipeline.runtimes.base import Placement
from pipeline.runtimes.readers import open_reader
from pipeline.stages.artefact_names import OBSERVERS, OUTPUTS, write_arithmetic

SEED = 0
# Bytes of layers' inputs in memory at once: all of wide_resnet50_2 take 0.8 GB. Further layers wait for another pass.
_MEMORY = 1 << 30

Held = Covariance | GroupCovariance | list[Values]  # of a layer's inputs: covariances, or each image's activation


@dataclass(frozen=True)
class Reading:
    """How the activations of images are read."""

    model: Path  # float32
    counter: Counter  # of that model
    raw: bool  # whether it reads pixels
    preprocess: PreprocessSpec
    arithmetic: Arithmetic | None  # what an earlier stage has found; None: not known
    positions: int  # of each image's output pixels
    cores: int
    workers: int  # threads that each sum the covariance of a layer
    again: bool  # whether another pass will read the images


@dataclass(frozen=True)
class Size:
    """The memory of a layer's inputs over all images, in bytes, in either form."""

    covariance: int
    activations: int

    @property
    def least(self) -> int:
        return min(self.covariance, self.activations)


def sizes_of(layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]], images: int) -> dict[str, Size]:
    """Return the memory that each layer's inputs would take, by name; `shapes` are those of activations."""
    sizes = {}
    for layer in layers:
        values = math.prod(shapes.get(layer.source, ())[1:])  # of an image; 0 or 1 where that is not known
        covariance = 4 * layer.groups * layer.inputs**2
        activations = 4 * images * values if values > 1 else covariance
        sizes[layer.name] = Size(covariance, min(activations, covariance - 1) if is_wide(layer) else activations)
    return sizes


def _outgrows(layer: Layer, activations: int) -> bool:
    """Tell whether the activations of all images, in bytes, take more than a covariance: shapes do not tell how many
    rows the products of an attention network have for an image, since its tokens lie in the axis of the batch."""
    return not is_wide(layer) and activations > 4 * layer.groups * layer.inputs**2


def passes(layers: Sequence[Layer], sizes: Mapping[str, Size]) -> Iterator[list[Layer]]:
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
class Counting:
    """What the first pass counts for the calibration."""

    listed: int  # images of the whole list
    counted: int  # the first of those that are read
    out: Path  # folder for the counts


class _Inputs:
    """What is held of the layers' inputs, image by image."""

    def __init__(self, layers: Sequence[Layer], sizes: Mapping[str, Size], positions: int, images: int) -> None:
        self._layers, self._positions, self._images = layers, positions, images
        self._random = np.random.default_rng(SEED)
        self.held: dict[str, Held] = {}
        for layer in layers:
            size = sizes[layer.name]
            self.held[layer.name] = [] if size.activations < size.covariance else covariance_of(layer)

    def take(self, tensors: Mapping[str, Values]) -> list[Values]:
        """Return a copy of what is to be held of an image, layer by layer; to be called in the order of the images."""
        return [self._take(layer, tensors[layer.source]) for layer in self._layers]

    def _take(self, layer: Layer, values: Values) -> Values:
        if self.held[layer.name] == [] and _outgrows(layer, self._images * values.nbytes):
            self.held[layer.name] = covariance_of(layer)
        whole = isinstance(self.held[layer.name], list)
        taken: Values = values.copy() if whole else layer.columns(values, self._positions, self._random)
        return taken

    def add(self, taken: Sequence[Values], pool: Executor) -> None:
        """Hold what `take` returned; the pool's threads each sum the covariance of a layer."""
        summed = []
        for layer, some in zip(self._layers, taken, strict=True):
            held = self.held[layer.name]
            if isinstance(held, list):
                held.append(some)
            else:
                summed.append((held, some))
        summed.sort(key=lambda each: each[1].shape[1], reverse=True)  # so that no thread is left with a wide one
        list(pool.map(lambda each: each[0].add(each[1]), summed))


def collect(
    reading: Reading,
    layers: Sequence[Layer],
    sizes: Mapping[str, Size],
    images: Sequence[Sample],
    counting: Counting | None,
    advance: Callable[[], object],
) -> dict[str, Held]:
    """Return the covariance or the activations of each layer's inputs over the images.

    The model is loaded only for this: factoring covariances later needs more memory than anything else here.
    """
    counter = reading.counter
    wanted = [layer.source for layer in layers] + (counter.read if counting else [])
    inputs = _Inputs(layers, sizes, reading.positions, len(images))

    def prepare(image: Sample, *, again: bool = True) -> Image:
        return prepared.load(reading.preprocess, image.source, raw=reading.raw, again=again)

    # An image is read beside the sums of the one before, on as few cores as those leave: threads that share an image
    # take up to half as much CPU time again.
    placement = Placement(1, max(1, reading.cores - reading.workers))
    reader = open_reader(reading.model, wanted, placement, prepare(images[0]), reading.arithmetic)
    in_all = 1 if counting is None else counting.listed
    if counting is not None and reader.arithmetic is Arithmetic.FLOAT32:
        # Calibration may count no other image but in its tails: as many values are counted of these.
        in_all = counting.counted
    counts = Counts(counter.observed, in_all)

    def set_tails() -> None:
        chosen = choose_evenly(counting.counted if counting else 0, TAIL_IMAGES)
        counter.set_tails(counts, (reader.read(prepare(images[index])) for index in chosen))

    def see(numbered: tuple[int, Sample]) -> tuple[list[Values], tuple[Float32, Means | None] | None]:
        number, image = numbered
        values = reader.read(prepare(image, again=reading.again))
        is_counted = counting is not None and number < counting.counted
        return inputs.take(values), counter.count(counts, values, fitting=True) if is_counted else None

    with thread_pool(1) as ahead, thread_pool(reading.workers) as pool:
        if counting:
            ahead.submit(set_tails).result()
        for taken, counted in one_ahead(ahead, see, list(enumerate(images))):
            inputs.add(taken, pool)
            if counted is not None:
                counts.add(*counted)
            advance()
    if counting:
        counts.save(counting.out / OBSERVERS, counting.out / OUTPUTS)
        write_arithmetic(counting.out, reader.arithmetic)
    reader.close()
    return inputs.held


def covariance_of(layer: Layer) -> Covariance | GroupCovariance:
    """Return the covariance of a layer's inputs, of no rows yet."""
    return Covariance(layer.inputs) if layer.groups == 1 else GroupCovariance(layer.groups, layer.inputs)


def is_wide(layer: Layer) -> bool:
    """Tell whether a layer has too many inputs for one covariance."""
    return layer.groups == 1 and layer.inputs > WIDEST
