"""Counts the activations of a float32 model that will be quantized, and averages what its layers read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from pipeline.artefacts import whole_file
from pipeline.errors import ArtefactError
from pipeline.quant import bfloat16, placement
from pipeline.quant.addends import find_addends
from pipeline.quant.attention_scores import score_inputs
from pipeline.quant.bfloat16 import Values
from pipeline.quant.levels import Levels
from pipeline.quant.observers import ObserverSet
from pipeline.quant.pixels import PIXELS

_WIDENED = 1 << 16  # values of bfloat16 in float32 at a time
TAIL_IMAGES = 4  # images that determine which values are extremes; see ObserverSet.set_tails

Float32 = npt.NDArray[np.float32]
Means = dict[str, npt.NDArray[np.float64]]  # of each channel, by tensor name


class Counts:
    """The observers of a model and its outputs, image by image."""

    def __init__(self, names: Sequence[str], listed: int) -> None:
        """Start with nothing.

        Args:
            names: of the tensors to observe.
            listed: images that are to be counted in all, by whoever counts the last of them.
        """
        self.observers = ObserverSet(names, listed)
        self.outputs: list[Float32] = []  # [n, classes] each

    @property
    def images(self) -> int:
        return sum(map(len, self.outputs))

    def add(self, output: Float32, means: Means | None) -> None:
        """Add what `Counter.count` returned of an image; in the order of the images."""
        self.outputs.append(output)
        if means is not None:
            self.observers.add_means(means)

    def save(self, observers: Path, outputs: Path) -> None:
        """Write outputs first: observers hold the number of images they have seen, and outputs beyond are dropped."""
        with whole_file(outputs) as scratch, scratch.open("wb") as stream:
            np.save(stream, np.concatenate(self.outputs), allow_pickle=False)
        self.observers.save(observers, images=self.images)

    @classmethod
    def load(cls, observers: Path, outputs: Path, names: Sequence[str], listed: int) -> Counts | None:
        """Return what `save` wrote; None where it is absent, damaged or of other tensors."""
        found = cls(names, listed)
        try:
            found.observers, images = ObserverSet.load(observers)
            rows = np.load(outputs, allow_pickle=False)
        except (ArtefactError, OSError, ValueError, EOFError):
            return None
        if list(found.observers.observers) != list(names) or len(rows) < images:
            return None
        found.outputs = [rows[:images]]
        return found


class Counter:
    """Counts the activations of one image after the other; threads may count at once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Learn what there is to count; the model is not kept."""
        self.observed = [*placement.observed_tensors(model), *score_inputs(model)]
        self.output = model.graph.output[0].name
        self._averaged = placement.layer_inputs(model)
        self._never_negative = placement.never_negative(model)
        self.addends = find_addends(model, self.observed)
        others = [addend.other for addend in self.addends.values()]
        # Names of the tensors that `count` needs: of the fitting images, and of all others. Reading what additions
        # read breaks the fusion of convolution, addition and ReLU, and they are a third of the values.
        self.read = [*self.observed, *self._averaged, *others, self.output]
        self._counted_later = [name for name in self.observed if name not in self.addends]
        self.read_later = [*self._counted_later, self.output] if self.addends else self.read

    def set_tails(self, counts: Counts, images: Iterable[Mapping[str, Values]]) -> None:
        """Learn from a few images which values are extremes; they are not counted by this."""
        for values in images:
            self.count(counts, values, fitting=True)
        counts.observers.set_tails()

    def count(self, counts: Counts, values: Mapping[str, Values], *, fitting: bool) -> tuple[Float32, Means | None]:
        """Count one image's tensors; return a copy of the output, and of a fitting image the layers' mean inputs.

        Args:
            values: float32, or bfloat16 as uint16 with the channels of [1, C, H, W] last.
            fitting: whether it is one of the first images, FITTING_IMAGES, of which `read` is needed and additions'
                inputs are counted; of the others `read_later`.

        Raises:
            DataError: an activation holds NaN or Inf; it is named.
        """
        counted = self.observed if fitting else self._counted_later
        counts.observers.add({name: values[name] for name in counted}, self._never_negative)
        for name, addend in self.addends.items() if fitting else ():
            if values[name].shape == values[addend.other].shape:
                counts.observers.observers[name].raise_lowest(values[name], values[addend.other], addend.needed)
        output = bfloat16.widen(values[self.output].copy())
        if not fitting:
            return output, None
        return output, {name: _channel_means(values[name], axis) for name, axis in self._averaged.items()}

    def count_levels(self, counts: Counts, values: Mapping[str, Float32 | Levels]) -> Float32 | None:
        """Count one image's tensors as an int8 model gives them; return a copy of the output.

        None, and nothing is counted, where values may lie beyond the range of a quantizer.

        Args:
            counts: with the tensors in levels among `counts.observers.levels`.
            values: of `read_later` but for pixels, uint8 or float32, in any order.

        Raises:
            DataError: as `count`.
        """
        levels, found = counts.observers.levels, {}
        for name, each in levels.items():
            outside = each.scan(values[name].view(np.uint8))
            if outside is None:
                return None
            found[name] = outside
        for name, outside in found.items():
            levels[name].add(outside, values[name].size)
        others = {
            name: values[name].astype(np.float32) for name in self._counted_later if name not in {*levels, PIXELS}
        }
        counts.observers.add(others, self._never_negative)
        return values[self.output].astype(np.float32)


def _channel_means(values: Values, axis: int) -> npt.NDArray[np.float64]:
    """Return float64 [C], the mean of each channel of float32 [1, C, ...], or [1, ..., C] where the axis is the last.

    Of bfloat16 [1, H, W, C] in any case.

    Summed in float32 by BLAS, in many partial sums: exact to six digits; float64 takes ten times as long.
    """
    if values.dtype == np.uint16:
        last = values.ndim == 4 or axis != 1
        return _row_means(values.reshape(-1, values.shape[-1]) if last else values.reshape(values.shape[1], -1).T)
    if axis == 1:
        rows = values.reshape(values.shape[1], -1)
        sums = rows @ np.ones(rows.shape[1], np.float32)
        return sums.astype(np.float64) / rows.shape[1]
    rows = values.reshape(-1, values.shape[-1])
    sums = np.ones(len(rows), np.float32) @ rows
    return sums.astype(np.float64) / len(rows)


def _row_means(rows: Values) -> npt.NDArray[np.float64]:
    """Return float64 [C], the mean of rows [n, C] of bfloat16, widened some at a time: they stay in the cache."""
    step = max(1, _WIDENED // rows.shape[1])
    sums = np.zeros(rows.shape[1])
    for start in range(0, len(rows), step):
        some = bfloat16.widen(rows[start : start + step])
        sums += np.ones(len(some), np.float32) @ some
    return sums / len(rows)
