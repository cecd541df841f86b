"""ranges.py: which percentile histograms speak for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.quant.observers import ObserverSet
from pipeline.quant.pixels import PIXELS
from pipeline.quant.ranges import PERCENTILES, choose_percentile

Float32 = npt.NDArray[np.float32]
VALUES = 1 << 22


def observed(**tensors: Float32) -> ObserverSet:
    seen = ObserverSet(list(tensors))
    seen.add(tensors)
    return seen


def normal() -> Float32:
    """Both sides, with thin tails, as linear bottlenecks have."""
    return np.random.default_rng(0).normal(0, 1, VALUES).astype(np.float32)


def sparse() -> Float32:
    """A ReLU's: many zeros, and few large values that hold much of the power."""
    rng = np.random.default_rng(1)
    return np.where(rng.random(VALUES) < 0.9, 0, rng.exponential(1, VALUES) ** 3).astype(np.float32)


def test_narrower_range_is_taken_where_values_thin_out_evenly() -> None:
    assert choose_percentile(observed(linear=normal())) == 99.999


def test_widest_range_stays_where_large_values_hold_the_power() -> None:
    assert choose_percentile(observed(relu=sparse())) == PERCENTILES[0]


def test_widest_range_stays_where_a_network_has_both() -> None:
    """Noise adds up over the activations: what one gains another loses."""
    assert choose_percentile(observed(linear=normal(), relu=sparse())) == PERCENTILES[0]


def test_widest_range_stays_where_it_leaves_everything_inside_as_the_others_do() -> None:
    few = np.linspace(-1, 1, 1000, dtype=np.float32)
    assert choose_percentile(observed(linear=few)) == PERCENTILES[0]


def test_pixels_have_no_say() -> None:
    """Their quantizer has a step a level in any case."""
    seen = observed(linear=sparse(), **{PIXELS: normal()})
    assert choose_percentile(seen) == PERCENTILES[0]
    assert choose_percentile(observed(**{PIXELS: normal()})) == PERCENTILES[0]


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_choice_does_not_depend_on_the_unit_of_an_activation(scale: float) -> None:
    values = (normal() * np.float32(scale)).astype(np.float32)
    assert choose_percentile(observed(linear=values)) == 99.999
