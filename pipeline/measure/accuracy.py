"""Shares of right answers with their intervals, and what two models' answers to the same images say of each other.

The second is finer than top-1, whose last tenths are noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.onnx_models.scores import Scores

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_SUM_TOLERANCE = 1e-3  # of scores that are probabilities already
_Z95 = 1.959964  # standard normal quantile of a two-sided 95% interval
_LEAST = float(np.finfo(np.float32).tiny)  # a probability that float32 cannot hold
_NEAREST = 2.0**-24  # how near to 1 a float32 comes: sigmoids are cut off there at both ends, logits at +-16.6


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
        """Wilson's score interval (E. B. Wilson, JASA 22, 1927), which holds near 0 and 100% too."""
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


@dataclass
class Divergence:
    """Running sums over images; add blocks of scores as they are read.

    Scores of labels by themselves (sigmoids) are Bernoulli distributions that do not depend on each other. Divergences
    of independent distributions add up (Cover and Thomas, Elements of Information Theory, 2006, theorem 2.5.3), so that
    an image has the sum over its labels of p ln(p / q) + (1 - p) ln((1 - p) / (1 - q)); their logits are ln(p / (1-p)).
    """

    scores: Scores | None = None  # what both models' outputs are; None: not known, told by their values
    images: int = 0
    divergence_sum: float = 0.0
    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Float32, answers: Float32) -> None:
        """Add images: scores of both models, float32 [images, classes]."""
        self.images += len(reference)
        if self.scores is Scores.SIGMOID:
            wanted, found = _logits_of_sigmoids(reference), _logits_of_sigmoids(answers)
            share = 1 / (1 + np.exp(-wanted))
            # ln p = -ln(1 + exp(-x)), and ln(1 - p) the same of -x.
            right = np.logaddexp(0, -found) - np.logaddexp(0, -wanted)
            wrong = np.logaddexp(0, found) - np.logaddexp(0, wanted)
            self.divergence_sum += float((share * right + (1 - share) * wrong).sum())
        else:
            wanted, found = _log_probabilities(reference, self.scores), _log_probabilities(answers, self.scores)
            self.divergence_sum += float((np.exp(wanted) * (wanted - found)).sum())
            # The softmax is the same whatever is added to all logits of an image.
            wanted -= wanted.mean(axis=1, keepdims=True)
            found -= found.mean(axis=1, keepdims=True)
        self.signal += float((wanted**2).sum())
        self.noise += float(((wanted - found) ** 2).sum())

    @property
    def kl(self) -> float:
        """Mean Kullback-Leibler divergence of the answers' probabilities from the reference's, in nats an image."""
        return self.divergence_sum / self.images

    @property
    def sqnr_db(self) -> float:
        """Signal-to-quantization-noise ratio of the logits, in dB; before a softmax, each image's less their mean."""
        return 10 * math.log10(self.signal / self.noise) if self.noise > 0 else math.inf


def probabilities(values: Float32, scores: Scores | None) -> Float64:
    """Return what is shown to people, float64 [images, classes].

    The softmax of logits and log-probabilities; whatever else a network ends in as it is.

    Args:
        values: outputs of the model, [images, classes].
        scores: what they are; None: not known, told by the values.
    """
    if scores is None or scores.takes_softmax:
        return np.exp(_log_probabilities(values, scores))
    return values.astype(np.float64)


def _log_probabilities(values: Float32, scores: Scores | None) -> Float64:
    """Return the logarithms of the probabilities of one class, float64 [images, classes]."""
    wide = values.astype(np.float64)
    if scores is None:  # packages of earlier versions, where there is no onnx to look into the graph
        sums = np.abs(wide.sum(axis=1) - 1)
        scores = Scores.SOFTMAX if (wide >= 0).all() and sums.max() < _SUM_TOLERANCE else Scores.LOGITS
    logits = np.log(np.maximum(wide, _LEAST)) if scores is Scores.SOFTMAX else wide
    logits = logits - logits.max(axis=1, keepdims=True)
    normalised: Float64 = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return normalised


def _logits_of_sigmoids(values: Float32) -> Float64:
    shares = np.clip(values.astype(np.float64), _NEAREST, 1 - _NEAREST)
    logits: Float64 = np.log(shares) - np.log1p(-shares)
    return logits


def mcnemar_p(right_to_wrong: int, wrong_to_right: int) -> float:
    """Return the two-sided p-value of the exact McNemar test: how likely flips so uneven are if none was preferred.

    Source: McNemar, Psychometrika 12 (1947), with the binomial distribution in the place of chi-squared.
    """
    flips = right_to_wrong + wrong_to_right
    rarer = min(right_to_wrong, wrong_to_right)
    # In logarithms: the terms are beyond a float where thousands of answers flip.
    terms = (
        math.lgamma(flips + 1) - math.lgamma(k + 1) - math.lgamma(flips - k + 1) + flips * math.log(0.5)
        for k in range(rarer + 1)
    )
    return min(1.0, 2 * math.fsum(map(math.exp, terms)))


def drop_interval(right_to_wrong: int, wrong_to_right: int, images: int) -> tuple[float, float]:
    """Return the 95% interval of the accuracy lost, in % points, given how many answers flipped.

    Tango's score interval of two shares of the same images (Statistics in Medicine 17, 1998, 891-908). How many answers
    flip is by chance too, hence it is not a point where none did: nobody knows of images that were not seen.
    """

    def too_large(lost: float, flips: tuple[int, int]) -> bool:
        """Tell whether so large a loss would hardly ever flip so few answers."""
        b, c = flips
        # The likeliest share of answers that flip the other way, given the loss.
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

    return -bound((wrong_to_right, right_to_wrong)), bound((right_to_wrong, wrong_to_right))
