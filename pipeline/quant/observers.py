"""Streaming observers: histograms of the activations of a float32 model over any number of images, in constant memory.

ONNX Runtime's own histogram calibrators keep every activation of every image. Here each batch is counted into
histograms of fixed size and discarded.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.artefacts import whole_file
from pipeline.errors import ArtefactError, DataError
from pipeline.quant import bfloat16, qmath
from pipeline.quant.arrays import read_arrays
from pipeline.quant.bfloat16 import Float32, Values
from pipeline.quant.levels import LevelCounts
from pipeline.quant.qmath import Counts

# Values counted at a time, a bound on the memory of their keys. Measured on random values: 2^15 to 2^18 are equal.
_CHUNK = 1 << 18
# Of a large tensor whose tails are known, all values of the tails are counted, and an even sample of the others, since
# thresholds lie in the tails: at least so many values of a tensor over all images, and of an image. A percentile p
# outside the tails is then that of a million values, exact within 1 / sqrt(10,000 (100 - p)) of (100 - p).
_SAMPLES, _LEAST_SAMPLES = 1 << 20, 1 << 11
_TAIL_SHARE = 0.001  # of the values of the images that the tails are set by, at either end
_SCANNED = 1 << 16  # values scanned at a time: they stay in the cache
# Values of bfloat16 that wait until they are counted together: of an image there are some thousands of a tensor, and
# the calls that count them would take as long as its scan.
_WAITING = 1 << 16


@dataclass
class Observer:
    """Running statistics of one tensor; threads may add at once."""

    lowest: float = float("inf")
    highest: float = float("-inf")
    tails: tuple[int, int] = (0, 0)  # keys of the magnitudes where they begin, below and above zero; 0: all is tail
    samples: int = _SAMPLES  # values counted of a batch outside the tails, about; smaller batches are counted whole
    _counted: Counts = field(default_factory=lambda: np.zeros(qmath.BINS, np.int64), repr=False)
    _waiting: dict[int, list[bfloat16.Halves]] = field(default_factory=dict, repr=False)  # by how much each counts
    _values: int = field(default=0, repr=False)  # that wait
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def counts(self) -> Counts:
        """The histogram of all values so far, int64 [BINS]; to be changed in place."""
        with self._lock:
            self._count_waiting()
        return self._counted

    def add(self, values: Values, *, never_negative: bool = False) -> bool:
        """Count an array of any shape; C-contiguous, or it is copied. Return whether all values so far are finite.

        Args:
            values: float32, or bfloat16 as uint16.
            never_negative: they come of a ReLU or the like, so that their minimum need not be looked for: `lowest` is
                then that of the values counted.
        """
        stride = _stride(values.size, self.samples)
        if values.dtype == np.uint16:
            return self._add_halves(np.ascontiguousarray(values, np.uint16).reshape(-1), stride)
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        if self.tails != (0, 0) and stride > 1:
            self._add_sampled(flat, stride, never_negative)
            return self._is_finite()
        keys = np.empty(min(_CHUNK, flat.size), np.int64)
        for start in range(0, flat.size, _CHUNK):
            chunk = flat[start : start + _CHUNK]
            found = qmath.float_keys(chunk, out=keys[: chunk.size])
            lowest, highest = float(chunk.min()), float(chunk.max())
            with self._lock:
                np.add.at(self._counted, found, 1)  # a nanosecond a value; bincount would fill and add all bins
                self.lowest = min(self.lowest, lowest)
                self.highest = max(self.highest, highest)
        return self._is_finite()

    def raise_lowest(self, values: Values, others: Values, needed: Callable[[Float32, Float32], Float32]) -> None:
        """Count the values of the lower tail that `add` has counted as what they may be raised to.

        Args:
            values: as they were added.
            others: of the same dtype and shape.
            needed: of some values and others, float32 [n], what values may be raised to.
        """
        flat, beside = values.reshape(-1), others.reshape(-1)
        if values.dtype == np.uint16:
            low = np.flatnonzero(bfloat16.is_low(flat.view(np.uint16), self.tails[0]))
            old = bfloat16.keys(flat[low].view(np.uint16))
        else:
            low = np.flatnonzero(flat <= -qmath.magnitude(self.tails[0]))
            old = qmath.float_keys(flat[low].view(np.float32))
        new = qmath.float_keys(needed(bfloat16.widen(flat[low]), bfloat16.widen(beside[low])))
        with self._lock:
            np.subtract.at(self._counted, old, 1)  # where they may still wait to be counted
            np.add.at(self._counted, new, 1)

    def _add_sampled(self, flat: npt.NDArray[np.float32], stride: int, never_negative: bool) -> None:
        low, high = -qmath.magnitude(self.tails[0]), qmath.magnitude(self.tails[1])
        sampled = flat[::stride].copy()  # together, since it is looked at several times
        outside = []
        lowest, highest = float(sampled.min()), float("-inf")
        finite = math.isfinite(lowest)
        for start in range(0, flat.size, _SCANNED):
            chunk = flat[start : start + _SCANNED]
            most = float(chunk.max())  # NaN if one is
            least = lowest if never_negative else float(chunk.min())
            finite = finite and math.isfinite(least) and math.isfinite(most)
            lowest, highest = min(lowest, least), max(highest, most)
            if most >= high:
                outside.append(chunk[chunk >= high])
            if least <= low:
                outside.append(chunk[chunk <= low])
        if not finite:
            outside.append(flat[~np.isfinite(flat)])
        inner = qmath.float_keys(sampled[(sampled > low) & (sampled < high)])
        exact = [qmath.float_keys(values) for values in outside]
        with self._lock:
            np.add.at(self._counted, inner, stride)
            for keys in exact:
                np.add.at(self._counted, keys, 1)
            self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)

    def _is_finite(self) -> bool:
        # The extremes would not show it: Python's min() and max() ignore a NaN.
        return qmath.count_not_finite(self._counted) == 0

    def _add_halves(self, bits: bfloat16.Halves, stride: int) -> bool:
        if self.tails == (0, 0) or stride == 1:
            inner, stride = bits, 1
            outside, lowest, highest = bfloat16.scan(bits, bfloat16.NO_TAILS)
        else:
            inner = bits[::stride]
            outside, lowest, highest = bfloat16.scan(bits, self.tails)
        with self._lock:
            self._waiting.setdefault(stride, []).append(inner.copy())
            self._waiting.setdefault(1, []).extend(outside)
            self._values += inner.size + sum(map(len, outside))
            if self._values >= _WAITING:
                self._count_waiting()
            self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        return math.isfinite(lowest) and math.isfinite(highest)

    def _count_waiting(self) -> None:
        for stride, pieces in self._waiting.items():
            bits = np.concatenate([*pieces, np.empty(0, np.uint16)])
            if stride > 1:
                bits = bfloat16.inside(bits, self.tails)
            np.add.at(self._counted, bfloat16.keys(bits), stride)
        self._waiting.clear()
        self._values = 0


@lru_cache(maxsize=1024)
def _stride(size: int, samples: int) -> int:
    """Return the step that takes at most `samples` of `size` values: a prime, which prefers no column of a map."""
    step = -(-size // samples)
    while any(step % factor == 0 for factor in range(2, math.isqrt(step) + 1)):
        step += 1
    return step


class ObserverSet:
    """Observers by tensor name, and sums of channel means, saved and restored as a whole."""

    def __init__(self, names: Sequence[str], images: int = 1) -> None:
        """Start with nothing; `images` are to come in all, on which depends how many values of each are counted."""
        self.observers = {name: Observer() for name in names}
        self.sample_for(images)
        self.mean_sums: dict[str, npt.NDArray[np.float64]] = {}  # of each layer's input
        self.averaged = 0  # images that `mean_sums` are of
        self.levels: dict[str, LevelCounts] = {}  # what int8 models gave of tensors, until `spread_levels`

    def sample_for(self, images: int) -> None:
        """Set how many values of each tensor are counted from here on: those of so many images are enough."""
        for observer in self.observers.values():
            observer.samples = max(_LEAST_SAMPLES, _SAMPLES // max(1, images))

    def set_tails(self) -> None:
        """Set the tails by the values counted so far, discard the counts, and sample the other values from here on."""
        for observer in self.observers.values():
            observer.tails = qmath.tail_keys(observer.counts, _TAIL_SHARE)
            observer.counts[:] = 0
            observer.lowest, observer.highest = float("inf"), float("-inf")

    def add_means(self, means: Mapping[str, npt.NDArray[np.float64]]) -> None:
        """Add one image's channel means, float64 [channels] by tensor name.

        Call it in the order of the images, whichever thread counted them: float sums depend on their order.
        """
        for name, mean in means.items():
            self.mean_sums[name] = self.mean_sums.get(name, 0.0) + mean
        self.averaged += 1

    def means(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return the mean of each channel of the layers' inputs, float64 [channels] by tensor name."""
        return {name: sums / self.averaged for name, sums in self.mean_sums.items()}

    def add(self, values: Mapping[str, Values], never_negative: Collection[str] = frozenset()) -> None:
        """Count one batch of every tensor; threads may add at once, in any order, with the same outcome.

        Args:
            values: float32, or bfloat16 as uint16.
            never_negative: names of tensors that hold no value below zero; see `Observer.add`.

        Raises:
            DataError: a tensor holds NaN or Inf; it is named.
        """
        for name, tensor in values.items():
            if not self.observers[name].add(tensor, never_negative=name in never_negative):
                raise DataError(
                    f"activation {name}: holds NaN or Inf in float32; check the checkpoint, the preprocessing, and "
                    "constants of the network that are infinite"
                )

    def spread_levels(self) -> None:
        """Add what was counted in levels to the histograms of the same tensors in float32."""
        for name, levels in self.levels.items():
            observer, (lowest, highest) = self.observers[name], levels.extremes()
            levels.spread(observer.counts)
            observer.lowest, observer.highest = min(observer.lowest, lowest), max(observer.highest, highest)
        self.levels.clear()

    def save(self, path: Path, images: int) -> None:
        """Write the observers, and the count of images they have seen. Only bins in use are kept."""
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "images": np.int64(images)[None],
            "averaged": np.int64(self.averaged)[None],
            "names": np.array(list(self.observers)),
            "samples": np.array([observer.samples for observer in self.observers.values()], np.int64),
            "tails": np.array([observer.tails for observer in self.observers.values()], np.int64),
            "extremes": np.array([[o.lowest, o.highest] for o in self.observers.values()], np.float64),
        }
        for index, observer in enumerate(self.observers.values()):
            counts = observer.counts
            used = np.flatnonzero(counts).astype(np.uint32)
            arrays[f"keys_{index}"], arrays[f"counts_{index}"] = used, counts[used]
        arrays["mean_names"] = np.array(list(self.mean_sums))
        for index, sums in enumerate(self.mean_sums.values()):
            arrays[f"mean_sums_{index}"] = sums
        if self.levels:
            arrays["level_names"] = np.array(list(self.levels))
        for index, levels in enumerate(self.levels.values()):
            arrays[f"levels_{index}"], arrays[f"scale_{index}"] = levels.as_arrays()
        with whole_file(path) as scratch, scratch.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> tuple[ObserverSet, int]:
        """Return saved observers and the count of images they have seen.

        Raises:
            ArtefactError: the file is not one that `save` wrote.
        """
        arrays: dict[str, Any] = read_arrays(path, "calibration file")
        try:
            loaded = cls([str(name) for name in arrays["names"]])
            for index, observer in enumerate(loaded.observers.values()):
                observer.counts[arrays[f"keys_{index}"]] = arrays[f"counts_{index}"]
                observer.lowest, observer.highest = (float(value) for value in arrays["extremes"][index])
                observer.samples = max(1, int(arrays["samples"][index]))
                below, above = arrays["tails"][index]
                observer.tails = (int(below), int(above))
            for index, name in enumerate(arrays["mean_names"]):
                loaded.mean_sums[str(name)] = arrays[f"mean_sums_{index}"]
            loaded.averaged = int(arrays["averaged"][0])
            for index, name in enumerate(arrays.get("level_names", ())):
                found = LevelCounts.from_arrays(arrays[f"levels_{index}"], arrays[f"scale_{index}"])
                loaded.levels[str(name)] = found
            return loaded, int(arrays["images"][0])
        except (LookupError, ValueError) as err:  # arrays that are not there, or of other shapes
            raise ArtefactError(f"{path}: invalid calibration file ({err}); delete it and build again") from err
