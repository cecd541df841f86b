"""Histograms of activations that an int8 model computes: uint8 levels in the place of float32 values.

Thresholds lie in the tails, so that of each tensor the levels of the tails are counted. The values between them are
taken to be distributed as in the images that were counted in float32.

A value beyond the range of its quantizer would be counted as the range's end: such an image has to be read in float32.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.quant import qmath
from pipeline.quant.qmath import Counts, Range
from pipeline.quant.scanning import in_rows, take_columns

Levels = npt.NDArray[np.uint8]

LEVELS = 256
TOP = LEVELS - 1
_SIGN = qmath.ZERO_KEYS[1]


@dataclass(frozen=True)
class Scale:
    """What the levels of a tensor stand for: (level - zero) * step, in tensor units."""

    step: float
    zero: int

    def values(self, levels: Levels) -> npt.NDArray[np.float32]:
        """Return the middle of the interval that each level stands for."""
        values: npt.NDArray[np.float32] = (levels.astype(np.float32) - self.zero) * np.float32(self.step)
        return values


@dataclass
class LevelCounts:
    """The levels of one tensor that were counted; threads may add at once."""

    scale: Scale
    low: int  # the levels up to this one are counted, -1: none,
    high: int  # and those from this one on, 256: none
    open_low: bool  # whether values beyond the quantizer's range may be among those of level 0,
    open_high: bool  # and of level 255
    counts: Counts = field(default_factory=lambda: np.zeros(LEVELS, np.int64), repr=False)
    values: int = 0  # of the tensor that were looked at
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def of(cls, scale: Scale, tails: tuple[int, int], wanted: Range) -> LevelCounts:
        """Return those of a quantizer, of no values yet.

        Args:
            scale: of the quantizer.
            tails: keys of the magnitudes where the tails begin, below and above zero.
            wanted: the range that the quantizer was to have. Where a Clip ends before it, so does the quantizer, and
                no value lies beyond.
        """
        below, above = (int(np.ceil(qmath.magnitude(key) / scale.step + 0.5)) for key in tails)
        low, high = -scale.zero * scale.step, (TOP - scale.zero) * scale.step
        return cls(
            scale,
            max(-1, scale.zero - below),
            min(LEVELS, scale.zero + above),
            open_low=scale.zero > 0 and low <= wanted.low + scale.step,
            open_high=scale.zero < TOP and high >= wanted.high - scale.step,
        )

    @classmethod
    def from_arrays(cls, counts: Counts, numbers: npt.NDArray[np.float64]) -> LevelCounts:
        """Return what `as_arrays` gave."""
        step, (zero, low, high, open_low, open_high, values) = float(numbers[0]), (int(each) for each in numbers[1:])
        return cls(Scale(step, zero), low, high, bool(open_low), bool(open_high), counts.astype(np.int64), values)

    def as_arrays(self) -> tuple[Counts, npt.NDArray[np.float64]]:
        """Return the counts, and all else in numbers."""
        numbers = [self.scale.step, self.scale.zero, self.low, self.high, self.open_low, self.open_high, self.values]
        return self.counts, np.array(numbers, np.float64)

    def scan(self, levels: Levels) -> list[Levels] | None:
        """Return the levels of the tails, in pieces; None where values may lie beyond the quantizer's range.

        Args:
            levels: C-contiguous, of any shape.
        """
        outside = []
        for grid in in_rows(levels.reshape(-1)):
            # The largest of each column: few hold a level of the tails, so that the grid is read once or twice.
            most = np.maximum.reduce(grid, axis=0)
            top = int(most.max())
            if top == TOP and self.open_high:
                return None
            if top >= self.high:
                found = take_columns(grid, most >= self.high)
                outside.append(found[found >= self.high])
            if self.scale.zero == 0:
                continue
            least = np.minimum.reduce(grid, axis=0)
            bottom = int(least.min())
            if bottom == 0 and self.open_low:
                return None
            if bottom <= self.low:
                found = take_columns(grid, least <= self.low)
                outside.append(found[found <= self.low])
        return outside

    def add(self, outside: Sequence[Levels], values: int) -> None:
        """Count what `scan` found of so many values."""
        found = np.bincount(np.concatenate([*outside, np.empty(0, np.uint8)]), minlength=LEVELS)
        with self._lock:
            self.counts += found
            self.values += values

    def spread(self, counts: Counts) -> None:
        """Add what was counted to the histogram of the tensor over other images, in place.

        The values of a level are taken to lie evenly in its interval, those that were not counted as those of the
        other images between the same bounds.

        Args:
            counts: int64 [BINS], by `qmath.float_keys`.
        """
        self._add_inner(counts)
        for level in np.flatnonzero(self.counts).tolist():
            keys, shares = self._bins(level)
            counts[keys] += _divided(int(self.counts[level]), np.cumsum(shares))

    def extremes(self) -> tuple[float, float]:
        """Return the least and the largest of the counted values, in tensor units; +Inf and -Inf of none."""
        seen = np.flatnonzero(self.counts)
        if not seen.size:
            return float("inf"), float("-inf")
        least, most = self.scale.values(seen[[0, -1]].astype(np.uint8)).tolist()
        return least, most

    def _add_inner(self, counts: Counts) -> None:
        missing = self.values - int(self.counts.sum())
        inner = counts.copy()
        if self.high < LEVELS:
            inner[_key((self.high - 0.5 - self.scale.zero) * self.scale.step) : _SIGN] = 0
        if self.low >= 0:
            inner[_SIGN + _key((self.scale.zero - self.low - 0.5) * self.scale.step) :] = 0
        used = np.flatnonzero(inner)
        if used.size:
            counts[used] += _divided(missing, np.cumsum(inner[used]))
        else:
            counts[0] += missing

    def _bins(self, level: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the histogram bins of a level's interval, which is not that of zero, and how much of it lies in each.

        Beyond the range there is nothing: images with such values were not counted.
        """
        step, zero = self.scale.step, self.scale.zero
        near = (abs(level - zero) - 0.5) * step
        far = min(near + step, (TOP - zero if level > zero else zero) * step)
        keys = np.arange(_key(near), _key(far) + 1)
        bounds = np.clip([qmath.magnitude(int(keys[0])), *qmath.key_bounds(keys)], near, far)
        return keys + (0 if level > zero else _SIGN), np.diff(bounds)


def _key(magnitude: float) -> int:
    return int(qmath.float_keys(np.array([magnitude], np.float32))[0])


def _divided(total: int, cumulated: npt.NDArray[np.generic]) -> Counts:
    """Return whole numbers that sum up to the total, in proportion to shares that are given cumulated."""
    ends = np.rint(cumulated.astype(np.float64) * (total / float(cumulated[-1]))).astype(np.int64)
    return np.diff(ends, prepend=0)
