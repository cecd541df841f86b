"""The ranges of a network's activations, by a rule that is applied to the histogram of each."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.quant import qmath
from pipeline.quant.observers import Observer, ObserverSet
from pipeline.quant.pixels import LIMIT, PIXELS
from pipeline.quant.qmath import Range

# Those that are tried where the ranges are measured, the widest first: it is kept unless another is clearly better.
PERCENTILES = (99.9999, 99.9997, 99.999, 99.997)


def ranges_by(seen: ObserverSet, rule: Callable[[Observer], Range]) -> dict[str, Range]:
    """Return the range of each tensor that was counted, in its units; pixels have a step a level, whichever of them
    the images have."""
    return {name: Range(0.0, LIMIT) if name == PIXELS else rule(observer) for name, observer in seen.observers.items()}


def by_percentile(percentile: float) -> Callable[[Observer], Range]:
    """Return the rule that leaves at most (100 - percentile) % of the values outside at either end."""
    return lambda seen: qmath.percentile_range(seen.counts, seen.lowest, seen.highest, percentile)
