"""accuracy.py against sums over outcomes written down, and published figures."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from pipeline.measure.accuracy import Accuracy, change_in_points, change_interval, mcnemar_p


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (4, 3), (9, 15), (2, 20), (300, 240), (0, 2000)])
def test_mcnemar_p_is_the_sum_of_all_outcomes_as_rare(lost: int, won: int) -> None:
    flips = lost + won
    exact = min(Fraction(1), 2 * sum(Fraction(math.comb(flips, k), 2**flips) for k in range(min(lost, won) + 1)))
    assert mcnemar_p(lost, won) == pytest.approx(float(exact), rel=1e-9, abs=1e-300)


def log_likelihood(lost: int, won: int, images: int, lost_share: np.ndarray, won_share: np.ndarray) -> np.ndarray:
    """Of the shares of answers that flip one way and the other; all others stay."""
    with np.errstate(divide="ignore", invalid="ignore"):
        flips = [np.where(n > 0, n * np.log(share), 0.0) for n, share in ((lost, lost_share), (won, won_share))]
        found: np.ndarray = flips[0] + flips[1] + (images - lost - won) * np.log(1 - lost_share - won_share)
    return found


@pytest.mark.parametrize(("lost", "won"), [(0, 3), (3, 0), (5, 5), (9, 15), (40, 2), (1, 0)])
@pytest.mark.parametrize("end", [0, 1])
def test_change_interval_ends_where_the_score_is_that_of_95_percent(lost: int, won: int, end: int) -> None:
    """The likeliest shares given the loss are looked for on a grid here."""
    images = 500
    drop = -change_interval(lost, won, images)[end] / 100
    won_share = max(0.0, -drop) + np.linspace(1e-9, 0.2, 400_001)
    best = won_share[np.nanargmax(log_likelihood(lost, won, images, won_share + drop, won_share))]
    score = ((lost - won) - images * drop) / math.sqrt(images * (2 * best + drop - drop**2))
    assert score == pytest.approx(-1.96 if end == 0 else 1.96, abs=0.01)


@pytest.mark.parametrize(("lost_share", "won_share"), [(0.002, 0.002), (0.01, 0.01), (0.03, 0.005), (0.0, 0.01)])
def test_change_interval_holds_the_truth_in_95_of_100_runs(lost_share: float, won_share: float) -> None:
    """Summed over all outcomes that are not too rare."""
    images, covered = 400, 0.0
    for lost in range(40):
        for won in range(25):
            share = math.exp(
                math.lgamma(images + 1)
                - math.lgamma(lost + 1)
                - math.lgamma(won + 1)
                - math.lgamma(images - lost - won + 1)
                + (lost * math.log(lost_share) if lost_share else (0 if lost == 0 else -math.inf))
                + won * math.log(won_share)
                + (images - lost - won) * math.log(1 - lost_share - won_share)
            )
            if share > 1e-7:
                low, high = change_interval(lost, won, images)
                covered += share * (low <= 100 * (won_share - lost_share) <= high)
    assert 0.93 < covered <= 1


def test_change_interval_is_no_point_when_no_answer_flipped() -> None:
    """By the formula: z^2 / (n + z^2)."""
    assert change_interval(0, 0, 1000) == pytest.approx((-0.3827, 0.3827), abs=1e-4)


def test_change_in_points_is_above_0_when_it_is_better_after() -> None:
    assert change_in_points(Accuracy(13, 15), Accuracy(14, 15)) == pytest.approx(6.6667, abs=1e-4)
    assert change_in_points(Accuracy(14, 15), Accuracy(13, 15)) == pytest.approx(-6.6667, abs=1e-4)
    assert f"{change_in_points(Accuracy(3, 15), Accuracy(3, 15)):+.2f}" == "+0.00"
