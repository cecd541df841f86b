"""What a tensor on the way to a classifier's output holds; see `scores.find_scores`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.onnx_models.score_graph import CLOSE
from pipeline.onnx_models.scores import Scores

SHARES = (Scores.SOFTMAX, Scores.SIGMOID)


@dataclass(frozen=True)
class Values:
    """What a tensor holds: values of a kind, times `factor`, plus `offset`."""

    kind: Scores
    factor: float = 1.0
    offset: float = 0.0

    @property
    def are_shares(self) -> bool:
        return self.kind in SHARES

    def moved(self, factor: float, offset: float) -> Values:
        """Return these values times a factor, plus an offset."""
        if self.kind is Scores.LOG_SOFTMAX and factor != 1:
            return LOGITS
        return replace(self, factor=self.factor * factor, offset=self.offset * factor + offset)

    def settled(self) -> Scores:
        """Return what the values are, given factor and offset."""
        if not self.are_shares:
            return self.kind
        low, high = sorted((self.offset, self.offset + self.factor))  # the images of 0 and 1
        if abs(low) <= CLOSE and abs(high - 1) <= CLOSE and (self.kind is Scores.SIGMOID or self.factor > 0):
            return self.kind
        # From 0 to 100, or 1 - softmax: not logits. From -30 to 30: logits that tanh bounds.
        return Scores.OTHER if low > -CLOSE else Scores.LOGITS


LOGITS, OTHER, SIGMOID = Values(Scores.LOGITS), Values(Scores.OTHER), Values(Scores.SIGMOID)
