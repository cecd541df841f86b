"""accuracy.py against sums over outcomes written down, and published figures."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from pipeline.accuracy import Divergence, drop_interval, mcnemar_p


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


@pytest.fixture
def logits() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    reference = rng.normal(0, 3, (50, 7))
    return reference.astype(np.float32), (reference + rng.normal(0, 0.3, (50, 7))).astype(np.float32)


def test_divergence_is_the_sum_over_images_and_classes(logits: tuple[np.ndarray, np.ndarray]) -> None:
    reference, answers = logits
    found = Divergence()
    found.add(reference[:20], answers[:20])
    found.add(reference[20:], answers[20:])
    slow = 0.0
    for p, q in zip(softmax(reference.astype(float)), softmax(answers.astype(float)), strict=True):
        slow += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert found.images == 50
    assert found.kl == pytest.approx(slow / 50, rel=1e-6)
    centred = [each - each.mean(axis=1, keepdims=True) for each in (reference.astype(float), answers.astype(float))]
    ratio = (centred[0] ** 2).sum() / ((centred[0] - centred[1]) ** 2).sum()
    assert found.sqnr_db == pytest.approx(10 * math.log10(ratio), rel=1e-6)


def test_divergence_is_the_same_for_logits_and_their_softmax(logits: tuple[np.ndarray, np.ndarray]) -> None:
    of_logits, of_probabilities = Divergence(), Divergence()
    of_logits.add(*logits)
    of_probabilities.add(*(softmax(each).astype(np.float32) for each in logits))
    assert of_probabilities.kl == pytest.approx(of_logits.kl, rel=1e-4)
    assert of_probabilities.sqnr_db == pytest.approx(of_logits.sqnr_db, abs=1e-3)


def test_divergence_is_finite_when_a_probability_is_zero() -> None:
    found = Divergence()
    found.add(np.array([[0.5, 0.5, 0.0]], np.float32), np.array([[1.0, 0.0, 0.0]], np.float32))
    assert 10 < found.kl < 100


def test_divergence_of_equal_answers_is_nothing(logits: tuple[np.ndarray, np.ndarray]) -> None:
    found = Divergence()
    found.add(logits[0], logits[0])
    assert (found.kl, found.sqnr_db) == (0, math.inf)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (4, 3), (9, 15), (2, 20), (300, 240), (0, 2000)])
def test_mcnemar_p_is_the_sum_of_all_outcomes_as_rare(lost: int, won: int) -> None:
    flips = lost + won
    exact = min(Fraction(1), 2 * sum(Fraction(math.comb(flips, k), 2**flips) for k in range(min(lost, won) + 1)))
    assert mcnemar_p(lost, won) == pytest.approx(float(exact), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(
    ("lost", "won", "low", "high"),
    [
        # Clopper-Pearson 95% intervals of lost / (lost + won): 0/10, 5/10, 9/24
        (0, 10, 0.0, 0.3085),
        (5, 5, 0.1871, 0.8129),
        (9, 15, 0.1880, 0.5941),
        (10, 0, 0.6915, 1.0),
    ],
)
def test_drop_interval_is_that_of_the_share_of_flips_that_lost(lost: int, won: int, low: float, high: float) -> None:
    flips = lost + won
    found = drop_interval(lost, won, images=1000)
    assert found == pytest.approx(tuple((2 * share - 1) * flips / 10 for share in (low, high)), abs=2e-4 * flips / 10)


def test_drop_interval_is_nothing_when_no_answer_flipped() -> None:
    assert drop_interval(0, 0, 1000) == (0, 0)
