"""Reading activations by an int8 model, where float32 would take three times as long.

The images that rounding has read in float32 give a first range of every activation, and rounding the weights: with
those an int8 model computes the activations of all further images, as near to float32 as thresholds need. What reaches
beyond the first ranges is read in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline.errors import DataError
from pipeline.host.hardware import release_memory
from pipeline.quant import placement
from pipeline.quant.assemble import Parts, assemble
from pipeline.quant.counting import Counter, Counts
from pipeline.quant.float_parts import float_parts
from pipeline.quant.graphs import constants
from pipeline.quant.levels import TOP, LevelCounts, Levels, Scale
from pipeline.quant.observers import Observer
from pipeline.quant.pixels import PIXELS
from pipeline.quant.qmath import Range
from pipeline.quant.quantizer import name_of_levels
from pipeline.quant.ranges import by_percentile, ranges_by
from pipeline.quant.rounding import Rounded, read_rounded
from pipeline.runtimes.activations import ActivationReader, Float32, Image
from pipeline.runtimes.sessions import FILE_ERRORS, RUNTIME_ERRORS
from pipeline.runtimes.unordered import UnorderedReader
from pipeline.stages.artefact_names import WEIGHTS

LEAST_IMAGES = 64  # beside those that were read in float32, that are worth making a model for
# Of the first extremes, how far ranges reach. Of 872 images of ImageNet three in a hundred reach beyond in ResNets; a
# wider range has coarser levels.
_WIDENING = 1.25
COMPARED = 2  # images
# Of the norm of a tensor, what the int8 model may change of it; 2 to 17% in ResNets. Errors are nearly independent of
# the values, so that in a tail that falls off as exp(-x / s) noise of a power n^2 moves a threshold by n^2 / (2 s).
_LARGEST_SHARE = 0.3


@dataclass(frozen=True)
class Int8Reading:
    """An int8 model whose activations are read in levels, and the float32 model for images that reach beyond."""

    levels: UnorderedReader
    exact: ActivationReader
    places: Mapping[str, str]  # tensors of the int8 model by the names of the float32 one's
    watched: Sequence[str]  # those that are not counted, but must not reach beyond either

    def read(self, image: Image) -> Mapping[str, Float32 | Levels] | None:
        """Return the tensors of a prepared image by their names in the float32 model, in any order; see `Reader`.

        None where one that is not counted may reach beyond its range: what is added to it would be too small.
        """
        tensors = self.levels.read(image)
        if any(tensors[self.places[name]].max() == TOP for name in self.watched):
            return None
        return {name: tensors[place] for name, place in self.places.items()}

    def close(self) -> None:
        """Free both models."""
        self.levels.close()
        self.exact.close()


def open_int8(
    model: Path,
    rounded: Path,
    first: Counts,
    counts: Counts,
    images: Sequence[Image],
    *,
    threads: int,
    scratch: Path,
) -> Int8Reading | None:
    """Open an int8 model for `Counter.count_levels`, and say in the counts which tensors come in levels.

    None, and the counts are left as they are, where the network has operators that stay in float32, an activation was
    zero throughout, the int8 model does not run or is another one than that of an interrupted run, or its activations
    are not near those of the float32 model.

    Args:
        model: float32.
        rounded: the artefact of stage `round`.
        first: what that stage counted.
        counts: to be continued; levels of an interrupted run are kept.
        images: prepared, of those that stage `round` read: two will do, for the comparison.
        threads: of each call.
        scratch: a file that is written and removed.
    """
    float32 = onnx.load(model)
    if float_parts(float32, gates=True).nodes:
        return None
    counter = Counter(float32)
    # The range of pixels is known, and additions' inputs are counted on the first images alone.
    names = [name for name in [*counter.read_later, *counter.addends] if name != PIXELS]
    ranges = _first_ranges(first, counter.addends)
    if any(ranges[name].low == ranges[name].high for name in ranges.keys() & names):
        return None  # its levels would be those of any range
    try:
        int8 = _assemble(float32, ranges, read_rounded(rounded / WEIGHTS), first)
        del float32
        release_memory()  # four times the weights
        scales, places = _scales(int8), _places(int8, names)
        if places is None or not {places[name] for name in counter.addends} <= scales.keys():
            return None
        made = {
            name: LevelCounts.of(scales[place], first.observers.observers[name].tails, ranges[name])
            for name, place in places.items()
            if place in scales and name not in counter.addends
        }
        kept = counts.observers.levels or made
        if {name: each.scale for name, each in kept.items()} != {name: each.scale for name, each in made.items()}:
            return None  # of an interrupted run, which had another int8 model
        exact = ActivationReader(model, counter.read_later, threads=threads)
        if _are_near(int8, exact, places, scales, images, threads):
            wanted, ordered = [*places.values()], {places[counter.output]}
            levels = UnorderedReader(int8, wanted, images[0], ordered=ordered, threads=threads, scratch=scratch)
            counts.observers.levels = kept
            return Int8Reading(levels, exact, places, [*counter.addends])
        exact.close()
    except (DataError, *RUNTIME_ERRORS, *FILE_ERRORS):
        pass
    release_memory()
    return None


def _first_ranges(first: Counts, addends: Collection[str]) -> dict[str, Range]:
    """Return ranges that few images reach beyond.

    Those of `addends` begin where a ReLU may cut values off, as they were counted.
    """

    def widened(seen: Observer) -> Range:
        return Range(min(0.0, seen.lowest * _WIDENING), max(0.0, seen.highest * _WIDENING))

    def needed(seen: Observer) -> Range:
        return Range(by_percentile(100.0)(seen).low * _WIDENING, widened(seen).high)

    return ranges_by(first.observers, widened) | {name: needed(first.observers.observers[name]) for name in addends}


def _assemble(
    float32: onnx.ModelProto, ranges: Mapping[str, Range], rounded: Mapping[str, Rounded], first: Counts
) -> onnx.ModelProto:
    parts = Parts(
        ranges=ranges,
        per_channel=any(each.scales.size > 1 for each in rounded.values()),
        rounded=rounded,
        means=first.observers.means(),
        float_activations=placement.classifier_inputs(float32),
    )
    return assemble(float32, parts).model


def _scales(int8: onnx.ModelProto) -> dict[str, Scale]:
    """Return what the levels of each quantized activation stand for, by the name of the quantizer's output."""
    known = constants(int8)
    found = {}
    for node in int8.graph.node:
        if node.op_type == "QuantizeLinear" and {*node.input[1:]} <= known.keys():
            step, zero = (numpy_helper.to_array(known[name]) for name in node.input[1:3])
            if zero.dtype == np.uint8 and zero.size == 1:
                found[node.output[0]] = Scale(step.item(), zero.item())
    return found


def _places(int8: onnx.ModelProto, names: Sequence[str]) -> dict[str, str] | None:
    """Return the tensors of an int8 model that hold those of the float32 one; None where one is not there."""
    made = {name for node in int8.graph.node for name in node.output}
    levels = {name: name_of_levels(name) for name in names}
    places = {name: place if place in made else name for name, place in levels.items()}
    return places if {*places.values()} <= made else None


def _are_near(
    int8: onnx.ModelProto,
    exact: ActivationReader,
    places: Mapping[str, str],
    scales: Mapping[str, Scale],
    images: Sequence[Image],
    threads: int,
) -> bool:
    """Tell whether the activations of an int8 model differ from those of the float32 model by little."""
    reader = ActivationReader(int8, [*places.values()], threads=threads)
    powers = {name: np.zeros(2) for name in places}
    for image in images:
        found, expected = reader.read(image), exact.read(image)
        for name in places.keys() & expected.keys():  # what is added up is compared by its sum
            place = places[name]
            values = scales[place].values(found[place].view(np.uint8)) if place in scales else found[place]
            powers[name] += np.square(values - expected[name]).sum(), np.square(expected[name]).sum()
    reader.close()
    return all(noise <= _LARGEST_SHARE**2 * signal for noise, signal in powers.values())
