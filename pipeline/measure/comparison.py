"""A package's answers compared with those of float32, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.data.ground_truth import sample_key
from pipeline.data.storage import Location
from pipeline.measure.accuracy import Accuracy, change_interval, mcnemar_p
from pipeline.quant.divergence import Divergence
from pipeline.run.answer import Indices


@dataclass(frozen=True)
class Flip:
    """An image whose first answer is not that of float32. Classes by index."""

    name: str
    image: Location  # npz
    truth: int
    float32: int
    answer: int


@dataclass(frozen=True)
class AnswerComparison:
    """A package's answers compared with float32's for the same images."""

    top1: Accuracy  # of float32
    top5: Accuracy
    agreement: Accuracy  # same first answer, right or wrong
    right_to_wrong: int
    wrong_to_right: int
    flips: tuple[Flip, ...]
    divergence: Divergence

    @property
    def change_interval(self) -> tuple[float, float]:
        """95% interval of the change in top-1, in points (of 100 images)."""
        return change_interval(self.right_to_wrong, self.wrong_to_right, self.top1.count)

    @property
    def p_value(self) -> float:
        """p-value of the exact McNemar test of the hypothesis that neither model is better."""
        return mcnemar_p(self.right_to_wrong, self.wrong_to_right)


def compare_answers(
    ranks: Indices, reference: Indices, divergence: Divergence, truth: npt.NDArray[np.intp], images: Sequence[Location]
) -> AnswerComparison:
    """Return what changed between two sets of answers to the same images: best classes, [images, up to 5]."""
    package, float32 = ranks[:, 0], reference[:, 0]
    was_right, is_right = float32 == truth, package == truth
    changed = np.flatnonzero(package != float32)
    count = len(truth)
    return AnswerComparison(
        top1=Accuracy(int(was_right.sum()), count),
        top5=Accuracy(int((reference == truth[:, None]).any(axis=1).sum()), count),
        agreement=Accuracy(count - len(changed), count),
        right_to_wrong=int((was_right & ~is_right).sum()),
        wrong_to_right=int((~was_right & is_right).sum()),
        flips=tuple(
            Flip(sample_key(images[at]), images[at], int(truth[at]), int(float32[at]), int(package[at]))
            for at in map(int, changed)
        ),
        divergence=divergence,
    )
