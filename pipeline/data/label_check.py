"""Whether the labels of the calibration images fit the float32 model's answers: nothing else reveals a wrong order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.config.choices import ClassOrder
from pipeline.data.class_order import other_order, shown
from pipeline.data.imagenet import Sample
from pipeline.data.labels import ClassInfo

_FEWEST = 10  # fewer labelled images show nothing
# Of (share right - chance) / (1 - chance), the S of Bennett, Alpert and Goldstein (Public Opinion Quarterly 18, 1954):
# 0 by guessing, 1 if all are right. A good network whose 12 classes are sorted as text has two in place: 0.09.
_GUESSING = 0.15
_CERTAIN = 3.0  # standard deviations between two orders, by McNemar's test on the same images
_OWN_OUTPUT = 0.7  # share of images and of classes above which another order explains the answers
_IMAGES_A_CLASS = 3  # with fewer, any answers look like another order

Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]
_ORDERS = {ClassOrder.TEXT: "sorted as text", ClassOrder.NUMERIC: "in numeric order"}


def find_doubts(samples: Sequence[Sample], outputs: npt.NDArray[np.float32], classes: Sequence[ClassInfo]) -> list[str]:
    """Return a line where labels and answers do not fit, or where numbered folders are confirmed to be in order.

    Args:
        samples: images, some of them labelled.
        outputs: the float32 model's, [images, classes], in the order of `samples`.
        classes: in index order.
    """
    labelled = [index for index, sample in enumerate(samples) if sample.class_index is not None]
    truth = np.array([samples[index].class_index for index in labelled], np.intp)
    if len(labelled) < _FEWEST or len(set(truth.tolist())) < 2:
        return []
    answers = outputs[labelled].argmax(axis=1)
    ids = [known.id for known in classes]
    by_folder = all(samples[index].folder == ids[label] for index, label in zip(labelled, truth, strict=True))
    line = _of_orders(answers, truth, ids) if by_folder else _of_shift(answers, truth)
    line = line or find_guessing(answers, truth, ids, "labelled calibration images")
    return [line] if line else []


def _of_orders(answers: Indices, truth: Indices, ids: Sequence[str]) -> str | None:
    other = other_order(ids)
    if other is None:
        return None
    order, names = other
    place = {name: index for index, name in enumerate(names)}
    now = answers == truth
    then = answers == np.array([place[ids[label]] for label in truth])
    current = ClassOrder.TEXT if order is ClassOrder.NUMERIC else ClassOrder.NUMERIC
    if _is_better(then, now):
        return (
            f"class folders are numbers: {_ORDERS[current]} ({shown(ids)}) float32 is right on {_percent(now)} of the "
            f"{len(truth)} labelled calibration images, {_ORDERS[order]} ({shown(names)}) on {_percent(then)}: --set "
            f"dataset.class_order={order.value}"
        )
    if _is_better(now, then):
        return (
            f"class folders are numbers: {_ORDERS[current]} ({shown(ids)}), as they are here, float32 is right on "
            f"{_percent(now)} of the {len(truth)} labelled calibration images, {_ORDERS[order]} on {_percent(then)}"
        )
    return None


def _of_shift(answers: Indices, truth: Indices) -> str | None:
    for step, words in ((-1, "one less than"), (1, "one more than")):
        now, then = answers == truth, answers == truth + step
        if _is_better(then, now) and then.mean() > 0.5:
            return (
                f"float32 is right on {_percent(now)} of the {len(truth)} labelled calibration images, but on "
                f"{_percent(then)} were each label {words} it is: labels count from 0; correct the list "
                "(dataset.val_label)"
            )
    return None


def find_guessing(answers: Indices, truth: Indices, ids: Sequence[str], images: str) -> str | None:
    """Return a line with the likely cause where answers are hardly better than guesses.

    Args:
        answers, truth: class indices, of as many images.
        ids: of the classes, in index order.
        images: what the images are.
    """
    right = answers == truth
    chance = 1 / len(ids)
    if len(truth) < _FEWEST or (right.mean() - chance) / (1 - chance) >= _GUESSING:
        return None
    found = (
        f"float32 is right on only {_percent(right)} of the {len(truth)} {images} (by guessing: {100 * chance:.2g}%)"
    )
    moved = _example_of_another_order(answers, truth)
    if moved is not None:
        label, output = moved
        return (
            f"{found}, yet most classes have an output of their own (images of {ids[label]!r} get output {output}, "
            f"here {ids[output]!r}): the network has its classes in another order; give labels by a list of its "
            "indices (val_label), or folders that sort in its order"
        )
    return (
        f"{found}: labels and outputs may be in different orders, or images are prepared otherwise than in training; "
        "check dataset.class_order, val_label, and size, mean, std and RGB or BGR in process_ops"
    )


def _example_of_another_order(answers: Indices, truth: Indices) -> tuple[int, int] | None:
    """Return a misplaced class and the output that its images get, if nearly every class has one distinct output."""
    present = np.unique(truth)
    if len(truth) < _IMAGES_A_CLASS * len(present):
        return None
    counts = np.zeros((int(truth.max()) + 1, int(answers.max()) + 1), np.intp)
    np.add.at(counts, (truth, answers), 1)
    usual = counts.argmax(axis=1)
    alike = counts.max(axis=1).sum() / len(truth)
    distinct = len(set(usual[present].tolist())) / len(present)
    moved = [int(label) for label in present if usual[label] != label]
    if min(alike, distinct) < _OWN_OUTPUT or not moved:
        return None
    return moved[0], int(usual[moved[0]])


def _is_better(one: Bools, other: Bools) -> bool:
    """Tell whether one is right significantly more often than the other on the same images."""
    won, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return won - lost > _CERTAIN * math.sqrt(won + lost)


def _percent(right: Bools) -> str:
    return f"{100 * right.mean():.0f}%"
