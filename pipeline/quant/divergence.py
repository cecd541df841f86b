"""How far the outputs of two models for the same images differ: KL divergence and SQNR.

Both are finer than top-1 accuracy, whose tenths of a point are noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.onnx_models.scores import Scores

Float32 = npt.NDArray[np.float32]


Float64 = npt.NDArray[np.float64]


_SUM_TOLERANCE = 1e-3  # of scores that are probabilities already


_LEAST = float(np.finfo(np.float32).tiny)  # stands in for a probability too small for float32


_NEAREST = 2.0**-24  # distance from 1 to the next float32: sigmoids are clipped to it at both ends, logits to +-16.6


@dataclass
class Divergence:
    """Running sums over images; add blocks of scores as they are read.

    Sigmoids are independent Bernoulli distributions, one for each label. Divergences of independent distributions add
    up (Cover and Thomas, Elements of Information Theory, 2006, theorem 2.5.3), so the divergence of an image is the sum
    over its labels of p ln(p / q) + (1 - p) ln((1 - p) / (1 - q)); their logits are ln(p / (1-p)).
    """

    scores: Scores | None = None  # what both models' outputs are; None: guessed from their values
    images: int = 0
    divergence_sum: float = 0.0
    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Float32, answers: Float32) -> None:
        """Add images: scores of both models, float32 [images, classes]."""
        found = by_image(reference, answers, self.scores)
        self.images += len(reference)
        self.divergence_sum += float(found.kl.sum())
        self.signal += float(found.signal.sum())
        self.noise += float(found.noise.sum())

    @property
    def kl(self) -> float:
        """Mean Kullback-Leibler divergence of the answers' probabilities from the reference's, in nats per image."""
        return self.divergence_sum / self.images

    @property
    def sqnr_db(self) -> float:
        """Signal-to-quantization-noise ratio of the logits, in dB; before a softmax, less the mean of each image."""
        return 10 * math.log10(self.signal / self.noise) if self.noise > 0 else math.inf


@dataclass(frozen=True)
class ByImage:
    """What the sums of `Divergence` are made of, float64 [images] each."""

    kl: Float64  # nats
    signal: Float64  # squared logits of the reference; before a softmax, less their mean
    noise: Float64  # squared differences of the logits, likewise


def by_image(reference: Float32, answers: Float32, scores: Scores | None) -> ByImage:
    """Return how far the outputs of two models for the same images differ, image by image.

    Args:
        reference, answers: scores of both, [images, classes].
        scores: what they are; None: guessed from their values.
    """
    if scores is Scores.SIGMOID:
        wanted, found = _logits_of_sigmoids(reference), _logits_of_sigmoids(answers)
        share = 1 / (1 + np.exp(-wanted))
        # ln p = -ln(1 + exp(-x)), and ln(1 - p) is the same for -x.
        right = np.logaddexp(0, -found) - np.logaddexp(0, -wanted)
        wrong = np.logaddexp(0, found) - np.logaddexp(0, wanted)
        kl = (share * right + (1 - share) * wrong).sum(axis=1)
    else:
        wanted, found = _log_probabilities(reference, scores), _log_probabilities(answers, scores)
        kl = (np.exp(wanted) * (wanted - found)).sum(axis=1)
        # Adding a constant to all logits of an image does not change its softmax.
        wanted -= wanted.mean(axis=1, keepdims=True)
        found -= found.mean(axis=1, keepdims=True)
    return ByImage(kl, (wanted**2).sum(axis=1), ((wanted - found) ** 2).sum(axis=1))


def probabilities(values: Float32, scores: Scores | None) -> Float64:
    """Return what is shown to people, float64 [images, classes].

    The softmax of logits and log-probabilities; any other output unchanged.

    Args:
        values: outputs of the model, [images, classes].
        scores: what they are; None: guessed from the values.
    """
    if scores is None or scores.takes_softmax:
        return np.exp(_log_probabilities(values, scores))
    return values.astype(np.float64)


def _log_probabilities(values: Float32, scores: Scores | None) -> Float64:
    """Return the logarithms of the probabilities of one class, float64 [images, classes]."""
    wide = values.astype(np.float64)
    if scores is None:  # a package of an earlier version, on a machine without onnx to read its graph
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
