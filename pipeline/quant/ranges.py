"""The ranges of a network's activations, by a rule that is applied to the histogram of each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.quant import qmath, search
from pipeline.quant.observers import Observer, ObserverSet
from pipeline.quant.pixels import LIMIT, PIXELS
from pipeline.quant.qmath import Range

# Those that are tried where the build file names none, the widest first: it is kept unless another is clearly better.
PERCENTILES = (99.9999, 99.9997, 99.999, 99.997)
_CLEARLY = 0.9  # of the noise at the widest: a narrower one has to stay below
_EQUAL = 1.02  # of the least noise: of those within, the widest is taken


def ranges_by(seen: ObserverSet, rule: Callable[[Observer], Range]) -> dict[str, Range]:
    """Return the range of each tensor that was counted, in its units; pixels have a step a level, whichever of them
    the images have."""
    return {name: Range(0.0, LIMIT) if name == PIXELS else rule(observer) for name, observer in seen.observers.items()}


def by_percentile(percentile: float) -> Callable[[Observer], Range]:
    """Return the rule that leaves at most (100 - percentile) % of the values outside at either end."""
    return lambda seen: qmath.percentile_range(seen.counts, seen.lowest, seen.highest, percentile)


def choose_percentile(seen: ObserverSet) -> float:
    """Return the one of PERCENTILES at which a network's activations are quantized with the least noise.

    Noise is added up over the activations, each over its power, as far as their histograms tell it
    (`search.relative_noise`). The widest is taken unless another saves a tenth of its noise.

    Raises:
        DataError: of an activation no value was counted.
    """
    noise = np.zeros(len(PERCENTILES))
    for name, observer in seen.observers.items():
        if name != PIXELS:
            noise += search.relative_noise(observer.counts, [by_percentile(each)(observer) for each in PERCENTILES])
    best = int(np.argmax(noise <= _EQUAL * noise.min()))
    return PERCENTILES[best if noise[best] < _CLEARLY * noise[0] else 0]
