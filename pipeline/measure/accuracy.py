"""Accuracies with their intervals, and comparisons of two models' answers to the same images.

The comparisons are finer than top-1 accuracy, whose tenths of a point are noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_Z95 = 1.959964  # standard normal quantile of a two-sided 95% interval


@dataclass(frozen=True)
class Accuracy:
    """Share of correct answers, with its 95% confidence interval; all in %."""

    correct: int
    count: int

    @property
    def percent(self) -> float:
        return 100 * self.correct / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval (E. B. Wilson, JASA 22, 1927), which is valid near 0 and 100% too."""
        n, p, z2 = self.count, self.correct / self.count, _Z95**2
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return 100 * (centre - half), 100 * (centre + half)

    def as_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            "correct": self.correct,
            "count": self.count,
            "percent": round(self.percent, 3),
            "interval_95": [round(low, 3), round(high, 3)],
        }

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.percent:6.2f}%  {self.correct}/{self.count}  [{low:.2f}, {high:.2f}]"


def mcnemar_p(right_to_wrong: int, wrong_to_right: int) -> float:
    """Return the two-sided p-value of the exact McNemar test: the probability of flips at least this uneven by chance.

    Source: McNemar, Psychometrika 12 (1947), with the binomial distribution in place of chi-squared.
    """
    flips = right_to_wrong + wrong_to_right
    rarer = min(right_to_wrong, wrong_to_right)
    # In logarithms: where thousands of answers flip, the terms exceed the range of a float.
    terms = (
        math.lgamma(flips + 1) - math.lgamma(k + 1) - math.lgamma(flips - k + 1) + flips * math.log(0.5)
        for k in range(rarer + 1)
    )
    return min(1.0, 2 * math.fsum(map(math.exp, terms)))


def change_in_points(before: Accuracy, after: Accuracy) -> float:
    """Return the change in accuracy over the same images, in percentage points; above 0 is better."""
    return 100 * (after.correct - before.correct) / before.count


def change_interval(right_to_wrong: int, wrong_to_right: int, images: int) -> tuple[float, float]:
    """Return the 95% interval of the change in accuracy, in % points, given how many answers flipped.

    Tango's score interval for paired proportions (Statistics in Medicine 17, 1998, 891-908). The number of flips is
    random too, so the interval has a width even where no answer flipped: other images might.
    """

    def too_large(lost: float, flips: tuple[int, int]) -> bool:
        """Tell whether a true loss this large is rejected, given how few answers flipped."""
        b, c = flips
        # The maximum-likelihood share of answers that flip the other way, given the loss.
        linear = (2 * images - b + c) * lost - b - c
        other = (math.sqrt(max(0.0, linear**2 + 8 * images * c * lost * (1 - lost))) - linear) / (4 * images)
        variance = images * max(0.0, 2 * other + lost * (1 - lost))
        return images * lost - (b - c) > _Z95 * math.sqrt(variance)

    def bound(flips: tuple[int, int]) -> float:
        low, high = (flips[0] - flips[1]) / images, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if too_large(middle, flips) else (middle, high)
        return 100 * low

    return -bound((right_to_wrong, wrong_to_right)), bound((wrong_to_right, right_to_wrong))
