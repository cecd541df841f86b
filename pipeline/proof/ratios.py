"""How many times as fast one model is as another, from rates that were measured in the same rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

_ERROR = 0.05  # probability that an interval does not contain the median


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one candidate is as another, with a 95% interval; None where the rounds are too few."""

    median: float
    interval: tuple[float, float] | None

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 1."""
        return self.interval is not None and not self.interval[0] <= 1 <= self.interval[1]

    def __str__(self) -> str:
        if self.interval is None:
            return f"{_times(self.median)}x"
        return f"{_times(self.median)}x ({_times(self.interval[0])} to {_times(self.interval[1])})"


def _times(value: float) -> str:
    return f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def ratio(one: Sequence[float], other: Sequence[float]) -> Ratio:
    """Return how many times as fast one is as the other, from rates measured in the same rounds."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    return Ratio(median(ratios), median_interval(ratios))


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return a 95% interval for the median of the distribution that `values` come from; None for fewer than 6.

    Whatever the distribution, each value lies below the median with probability 1/2. So the k-th values from either end
    enclose it, except with twice the probability that fewer than k of n lie on one side (David and Nagaraja, Order
    Statistics, 2003, section 7.1).
    """
    count = len(values)
    tail, outside = 0.0, 0
    for k in range(count):
        tail += math.comb(count, k) / 2**count
        if 2 * tail > _ERROR:
            break
        outside = k + 1
    ordered = sorted(values)
    return (ordered[outside - 1], ordered[count - outside]) if outside else None
