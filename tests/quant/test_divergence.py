"""divergence.py against sums over classes written down."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.onnx_models.scores import Scores
from pipeline.quant.divergence import Divergence, probabilities

LOOKALIKES = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]], np.float32)  # not negative, and each row sums to 1


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = raised / raised.sum(axis=1, keepdims=True)
    return shares


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
