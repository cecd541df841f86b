"""Narrower ranges: finer steps for most values of an activation, and the largest cut off, where that costs less.

Ranges are set so that next to nothing is cut off, since histograms do not tell what a value is worth. Gradients do: of
a network whose answers hang little on the largest values of an activation, as resnet18's on those of its first ReLU, a
range of two thirds leaves half of the divergence.

Errors of rounding are nearly independent, so that squares of gradient times error add up. Errors of cutting off are
not: neighbours are cut off together, in the same direction, and add up before they are squared.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pipeline.quant.qmath import Range

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

SHARES = np.linspace(1.0, 0.4, 25)  # of a range that are tried
# Of what the best share saves: the widest that saves as much is taken. The sum is flat there, and other images reach
# further than those of the calibration.
_ENOUGH = 0.9
_WORTH = 0.005  # of the divergence of the whole model: less is noise


class Cuts:
    """What cutting off the largest values of each activation costs, summed over images."""

    def __init__(self, ranges: Mapping[str, Range]) -> None:
        """`ranges` are what the quantizers cover, by activation."""
        self._ranges = ranges
        self._sums = {name: np.zeros(len(SHARES)) for name in ranges}
        self._images = dict.fromkeys(ranges, 0)

    def add(self, name: str, values: Float32, gradients: Float32) -> None:
        """Add an image.

        Args:
            values: of the activation, any shape.
            gradients: same shape, of the answers in a random direction, see `learn.fisher`.
        """
        self._images[name] += 1
        covered, least = self._ranges[name], SHARES[-1]
        outer = (values > least * covered.high) | (values < least * covered.low)
        values, gradients = values[outer], gradients[outer]
        for at, share in enumerate(SHARES):
            excess = values - np.clip(values, share * covered.low, share * covered.high)
            self._sums[name][at] += 0.5 * float((gradients * excess).sum(dtype=np.float64)) ** 2

    def costs(self, name: str, rounding: float) -> Float64:
        """Return the divergence that a quantizer causes with each of `SHARES`, nats per image.

        Args:
            rounding: what it causes with the whole range.
        """
        return rounding * SHARES**2 + self._sums[name] / max(1, self._images[name])

    def cost(self, name: str, rounding: float, share: float) -> float:
        """Return that divergence with one of `SHARES`."""
        return float(self.costs(name, rounding)[np.argmin(np.abs(SHARES - share))])

    def best(self, name: str, rounding: float) -> float:
        """Return the share of its range that an activation's quantizer should cover."""
        costs = self.costs(name, rounding)
        saved = costs[0] - costs
        return float(SHARES[np.argmax(saved >= _ENOUGH * saved.max())])

    def choose(self, rounding: Mapping[str, float]) -> dict[str, float]:
        """Return by activation the share to narrow its range to, of those where that is worth it.

        Args:
            rounding: by activation, the divergence that its quantizer causes with the whole range.
        """
        least = _WORTH * sum(rounding.values())
        found = {name: self.best(name, cost) for name, cost in rounding.items()}
        return {
            name: share
            for name, share in found.items()
            if self.cost(name, rounding[name], 1.0) - self.cost(name, rounding[name], share) > least
        }


def narrow(ranges: Mapping[str, Range], shares: Mapping[str, float]) -> dict[str, Range]:
    """Return ranges, those of some activations narrowed to a share."""
    found = dict(ranges)
    for name, share in shares.items():
        found[name] = Range(share * ranges[name].low, share * ranges[name].high)
    return found
