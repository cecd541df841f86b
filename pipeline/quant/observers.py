"""Streaming observers: histograms of the activations of a float32 model over any number of images, in constant memory.

ONNX Runtime's own histogram calibrators keep every activation of every image. Here each batch is counted into
histograms of fixed size and discarded.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Mapping, Sequence
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
from pipeline.quant.bfloat16 import Values
from pipeline.quant.qmath import Counts

# Values counted at a time, a bound on the memory of their keys. Measured on random values: 2^15 to 2^18 are equal.
_CHUNK = 1 << 18
# Of a large tensor whose tails are known, all values of the tails are counted, and an even sample of the others, since
# thresholds lie in the tails: at least so many values of a tensor over all images, and of an image. A percentile p
# outside the tails is then that of a million values, exact within 1 / sqrt(10,000 (100 - p)) of (100 - p).
_SAMPLES, _LEAST_SAMPLES = 1 << 20, 1 << 11
_TAIL_SHARE = 0.001  # of the values of the images that the tails are set by, at either end
_SCANNED = 1 << 16  # values scanned at a time: they stay in the cache


@dataclass
class Observer:
    """Running statistics of one tensor; threads may add at once."""

    counts: Counts = field(default_factory=lambda: np.zeros(qmath.BINS, np.int64))
    lowest: float = float("inf")
    highest: float = float("-inf")
    tails: tuple[int, int] = (0, 0)  # keys of the magnitudes where they begin, below and above zero; 0: all is tail
    samples: int = _SAMPLES  # values counted of a batch outside the tails, about; smaller batches are counted whole
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, values: Values, *, never_negative: bool = False) -> None:
        """Count a float32 array of any shape; C-contiguous, or it is copied.

        Args:
            values: float32, or bfloat16 as uint16.
            never_negative: they come of a ReLU or the like, so that their minimum need not be looked for: `lowest` is
                then that of the values counted.
        """
        stride = _stride(values.size, self.samples)
        if values.dtype == np.uint16:
            self._add_halves(np.ascontiguousarray(values, np.uint16).reshape(-1), stride)
            return
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        if self.tails != (0, 0) and stride > 1:
            self._add_sampled(flat, stride, never_negative)
            return
        keys = np.empty(min(_CHUNK, flat.size), np.int64)
        for start in range(0, flat.size, _CHUNK):
            chunk = flat[start : start + _CHUNK]
            found = qmath.float_keys(chunk, out=keys[: chunk.size])
            lowest, highest = float(chunk.min()), float(chunk.max())
            with self._lock:
                np.add.at(self.counts, found, 1)  # a nanosecond a value; bincount would fill and add all bins
                self.lowest = min(self.lowest, lowest)
                self.highest = max(self.highest, highest)

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
            np.add.at(self.counts, inner, stride)
            for keys in exact:
                np.add.at(self.counts, keys, 1)
            self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)

    def _add_halves(self, bits: bfloat16.Halves, stride: int) -> None:
        if self.tails == (0, 0) or stride == 1:
            inner, stride = bits, 1
            _, lowest, highest = bfloat16.scan(bits, bfloat16.NO_TAILS)
            exact = []
        else:
            outside, lowest, highest = bfloat16.scan(bits, self.tails)
            inner = bfloat16.inside(bits[::stride].copy(), self.tails)
            exact = [bfloat16.keys(values) for values in outside]
        with self._lock:
            np.add.at(self.counts, bfloat16.keys(inner), stride)
            for keys in exact:
                np.add.at(self.counts, keys, 1)
            self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)


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
        samples = max(_LEAST_SAMPLES, _SAMPLES // max(1, images))
        self.observers = {name: Observer(samples=samples) for name in names}
        self.mean_sums: dict[str, npt.NDArray[np.float64]] = {}  # of each layer's input
        self.averaged = 0  # images that `mean_sums` are of

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
            self.observers[name].add(tensor, never_negative=name in never_negative)
            # The extremes would not show it: Python's min() and max() ignore a NaN.
            if qmath.count_not_finite(self.observers[name].counts):
                raise DataError(
                    f"activation {name}: holds NaN or Inf in float32; check the checkpoint and the preprocessing"
                )

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
            used = np.flatnonzero(observer.counts).astype(np.uint32)
            arrays[f"keys_{index}"], arrays[f"counts_{index}"] = used, observer.counts[used]
        arrays["mean_names"] = np.array(list(self.mean_sums))
        for index, sums in enumerate(self.mean_sums.values()):
            arrays[f"mean_sums_{index}"] = sums
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
            return loaded, int(arrays["images"][0])
        except (LookupError, ValueError) as err:  # arrays that are not there, or of other shapes
            raise ArtefactError(f"{path}: invalid calibration file ({err}); delete it and build again") from err
