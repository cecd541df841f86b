"""accuracy.py against sums over outcomes written down, and published figures."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from pipeline.measure.accuracy import drop_interval, mcnemar_p
from pipeline.onnx_models.scores import Scores
from pipeline.quant.divergence import Divergence, probabilities


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


@pytest.mark.parametrize("scores", [Scores.LOGITS, Scores.LOG_SOFTMAX, Scores.SOFTMAX])
def test_divergence_is_that_of_the_probabilities_when_scores_are_said(
    logits: tuple[np.ndarray, np.ndarray], scores: Scores
) -> None:
    of_logits, found = Divergence(Scores.LOGITS), Divergence(scores)
    of_logits.add(*logits)
    made = {
        Scores.LOGITS: lambda each: each + 7,
        Scores.LOG_SOFTMAX: lambda each: np.log(softmax(each)),
        Scores.SOFTMAX: softmax,
    }[scores]
    found.add(*(made(each.astype(float)).astype(np.float32) for each in logits))
    assert found.kl == pytest.approx(of_logits.kl, rel=1e-3)
    assert found.sqnr_db == pytest.approx(of_logits.sqnr_db, abs=1e-2)


def test_divergence_of_sigmoids_is_the_sum_over_labels(logits: tuple[np.ndarray, np.ndarray]) -> None:
    reference, answers = (each.astype(float) for each in logits)
    found = Divergence(Scores.SIGMOID)
    found.add(*(1 / (1 + np.exp(-each)).astype(np.float32) for each in (reference, answers)))
    slow = 0.0
    for x, y in zip(reference.ravel(), answers.ravel(), strict=True):
        p, q = 1 / (1 + math.exp(-x)), 1 / (1 + math.exp(-y))
        slow += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert found.images == 50
    assert found.kl == pytest.approx(slow / 50, rel=1e-4)
    ratio = (reference**2).sum() / ((reference - answers) ** 2).sum()
    assert found.sqnr_db == pytest.approx(10 * math.log10(ratio), abs=0.05)


def test_divergence_of_sigmoids_is_finite_when_one_is_0_or_1() -> None:
    found = Divergence(Scores.SIGMOID)
    found.add(np.array([[0.0, 1.0, 0.5]], np.float32), np.array([[1.0, 0.0, 0.5]], np.float32))
    assert found.kl == pytest.approx(2 * 24 * math.log(2), rel=1e-3)
    assert math.isfinite(found.sqnr_db)


LOOKALIKES = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]], np.float32)  # not negative, and each row sums to 1


def test_probabilities_are_the_softmax_when_logits_sum_to_1_by_chance() -> None:
    found = probabilities(LOOKALIKES, Scores.LOGITS)
    np.testing.assert_allclose(found, softmax(LOOKALIKES.astype(float)))
    divergence = Divergence(Scores.LOGITS)
    divergence.add(LOOKALIKES[:1], LOOKALIKES[1:])
    p, q = softmax(LOOKALIKES.astype(float))
    assert divergence.kl == pytest.approx((p * np.log(p / q)).sum())


@pytest.mark.parametrize("scores", [Scores.SOFTMAX, Scores.SIGMOID, Scores.OTHER])
def test_probabilities_are_the_networks_own_when_it_ends_in_them(scores: Scores) -> None:
    values = np.array([[0.9, 0.9, 0.0], [0.1, 0.2, 0.3]], np.float32)
    assert np.array_equal(probabilities(values, scores), values.astype(np.float64))


def test_probabilities_are_told_by_their_values_when_scores_are_not_said() -> None:
    np.testing.assert_allclose(probabilities(LOOKALIKES, None), LOOKALIKES, atol=1e-7)
    np.testing.assert_allclose(probabilities(LOOKALIKES + 1, None), softmax(LOOKALIKES.astype(float)))


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (4, 3), (9, 15), (2, 20), (300, 240), (0, 2000)])
def test_mcnemar_p_is_the_sum_of_all_outcomes_as_rare(lost: int, won: int) -> None:
    flips = lost + won
    exact = min(Fraction(1), 2 * sum(Fraction(math.comb(flips, k), 2**flips) for k in range(min(lost, won) + 1)))
    assert mcnemar_p(lost, won) == pytest.approx(float(exact), rel=1e-9, abs=1e-300)


def log_likelihood(lost: int, won: int, images: int, lost_share: np.ndarray, won_share: np.ndarray) -> np.ndarray:
    """Of the shares of answers that flip one way and the other; all others stay."""
    with np.errstate(divide="ignore", invalid="ignore"):
        flips = [np.where(n > 0, n * np.log(share), 0.0) for n, share in ((lost, lost_share), (won, won_share))]
        return flips[0] + flips[1] + (images - lost - won) * np.log(1 - lost_share - won_share)


@pytest.mark.parametrize(("lost", "won"), [(0, 3), (3, 0), (5, 5), (9, 15), (40, 2), (1, 0)])
@pytest.mark.parametrize("end", [0, 1])
def test_drop_interval_ends_where_the_score_is_that_of_95_percent(lost: int, won: int, end: int) -> None:
    """The likeliest shares given the loss are looked for on a grid here."""
    images = 500
    drop = drop_interval(lost, won, images)[end] / 100
    won_share = max(0.0, -drop) + np.linspace(1e-9, 0.2, 400_001)
    best = won_share[np.nanargmax(log_likelihood(lost, won, images, won_share + drop, won_share))]
    score = ((lost - won) - images * drop) / math.sqrt(images * (2 * best + drop - drop**2))
    assert score == pytest.approx(1.96 if end == 0 else -1.96, abs=0.01)


@pytest.mark.parametrize(("lost_share", "won_share"), [(0.002, 0.002), (0.01, 0.01), (0.03, 0.005), (0.0, 0.01)])
def test_drop_interval_holds_the_truth_in_95_of_100_runs(lost_share: float, won_share: float) -> None:
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
                low, high = drop_interval(lost, won, images)
                covered += share * (low <= 100 * (lost_share - won_share) <= high)
    assert 0.93 < covered <= 1


def test_drop_interval_is_no_point_when_no_answer_flipped() -> None:
    """By the formula: z^2 / (n + z^2)."""
    assert drop_interval(0, 0, 1000) == pytest.approx((-0.3827, 0.3827), abs=1e-4)
