"""label_check.py: answers that fit the labels in their order, in another, or by guessing alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.imagenet import Sample, make_sample
from pipeline.data.label_check import find_doubts, find_guessing
from pipeline.data.labels import classes_of
from pipeline.data.sources import ImageSource

NUMBERS = [str(number) for number in range(12)]
TEXT = sorted(NUMBERS)


def images_of(ids: Sequence[str], per_class: int, *, flat: bool = False) -> list[Sample]:
    root = Path("/data")
    return [
        make_sample(ImageSource(root, f"{'flat' if flat else name}/{name}_{k}.JPEG"), index)
        for index, name in enumerate(ids)
        for k in range(per_class)
    ]


def outputs_for(answers: Sequence[int], classes: int) -> np.ndarray:
    scores = np.random.default_rng(2).normal(0, 0.1, (len(answers), classes)).astype(np.float32)
    scores[np.arange(len(answers)), list(answers)] += 5
    return scores


def doubts(samples: Sequence[Sample], answers: Sequence[int], ids: Sequence[str]) -> list[str]:
    return find_doubts(samples, outputs_for(answers, len(ids)), classes_of(list(ids)))


def test_doubts_name_the_numeric_order_when_the_network_has_it() -> None:
    samples = images_of(TEXT, 6)
    answers = [int(sample.folder) for sample in samples]
    answers[0] = 5  # one wrong: 71 of 72
    assert doubts(samples, answers, TEXT) == [
        "class folders are numbers: sorted as text (0, 1, 10, 11, 2, ...) float32 is right on 15% of the 72 labelled "
        "calibration images, in numeric order (0, 1, 2, 3, 4, ...) on 99%: --set dataset.class_order=numeric"
    ]


def test_doubts_name_the_text_order_when_the_network_has_it() -> None:
    samples = images_of(NUMBERS, 6)
    answers = [TEXT.index(sample.folder) for sample in samples]
    assert doubts(samples, answers, NUMBERS) == [
        "class folders are numbers: in numeric order (0, 1, 2, 3, 4, ...) float32 is right on 17% of the 72 labelled "
        "calibration images, sorted as text (0, 1, 10, 11, 2, ...) on 100%: --set dataset.class_order=text"
    ]


def test_doubts_confirm_the_order_when_folders_are_numbers_and_it_is_right() -> None:
    samples = images_of(TEXT, 6)
    assert doubts(samples, [TEXT.index(sample.folder) for sample in samples], TEXT) == [
        "class folders are numbers: sorted as text (0, 1, 10, 11, 2, ...), as they are here, float32 is right on 100% "
        "of the 72 labelled calibration images, in numeric order on 17%"
    ]


def test_doubts_do_not_ask_for_an_order_when_labels_come_from_a_list() -> None:
    samples = images_of(TEXT, 6, flat=True)
    (line,) = doubts(samples, [int(TEXT[sample.class_index or 0]) for sample in samples], TEXT)
    assert "class_order=" not in line


@pytest.mark.parametrize(("step", "words"), [(1, "one less than"), (-1, "one more than")])
def test_doubts_name_the_shift_when_a_list_does_not_count_from_0(step: int, words: str) -> None:
    samples = images_of([f"c{index}" for index in range(5)], 8, flat=True)
    answers = [min(4, max(0, (sample.class_index or 0) - step)) for sample in samples]
    (line,) = doubts(samples, answers, [f"c{index}" for index in range(5)])
    assert line == (
        "float32 is right on 20% of the 40 labelled calibration images, but on 80% were each label "
        f"{words} it is: labels count from 0; correct the list (dataset.val_label)"
    )


def test_doubts_name_an_example_when_each_class_has_an_output_of_its_own() -> None:
    ids = ["ant", "bee", "cat", "dog", "eel"]
    moved = [3, 4, 0, 1, 2]
    samples = images_of(ids, 4)
    (line,) = doubts(samples, [moved[sample.class_index or 0] for sample in samples], ids)
    assert line == (
        "float32 is right on only 0% of the 20 labelled calibration images (by guessing: 20%), yet most classes have "
        "an output of their own (images of 'ant' get output 3, here 'dog'): the network has its classes in another "
        "order; give labels by a list of its indices (val_label), or folders that sort in its order"
    )


@pytest.mark.parametrize("classes", [2, 5, 100])
def test_doubts_name_order_and_preprocessing_when_answers_are_guesses(classes: int) -> None:
    ids = [f"kind_{chr(97 + index // 26)}{chr(97 + index % 26)}" for index in range(classes)]
    samples = images_of(ids, max(6, 200 // classes))
    rng = np.random.default_rng(4)
    answers = rng.integers(0, classes, len(samples)).tolist()
    share = np.mean([answer == sample.class_index for answer, sample in zip(answers, samples, strict=True)])
    (line,) = doubts(samples, answers, ids)
    assert line.startswith(
        f"float32 is right on only {100 * share:.0f}% of the {len(samples)} labelled calibration images"
    )
    assert "labels and outputs may be in different orders, or images are prepared otherwise than in training" in line


@pytest.mark.parametrize(
    ("classes", "right", "doubted"),
    [(2, 0.55, True), (2, 0.65, False), (12, 2 / 12, True), (12, 0.3, False), (1000, 0.1, True), (1000, 0.2, False)],
)
def test_guessing_is_told_from_a_poor_network_by_what_chance_gives(classes: int, right: float, doubted: bool) -> None:
    truth = np.arange(6000) % classes
    answers = np.where(np.arange(6000) < 6000 * right, truth, (truth + 1) % classes)
    assert (find_guessing(answers, truth, [str(index) for index in range(classes)], "images") is not None) is doubted


def test_doubts_are_none_when_the_network_is_sound() -> None:
    samples = images_of(["ant", "bee", "cat"], 10)
    answers = [(sample.class_index or 0) if number % 4 else 0 for number, sample in enumerate(samples)]
    assert doubts(samples, answers, ["ant", "bee", "cat"]) == []


def test_doubts_are_none_when_too_few_images_have_labels() -> None:
    ids = ["ant", "bee", "cat"]
    few = images_of(ids, 3)
    assert doubts(few, [0] * 9, ids) == []
    unlabelled = [make_sample(sample.source, None) for sample in images_of(ids, 10)]
    assert doubts(unlabelled, [0] * 30, ids) == []
    one_class = images_of(["ant"], 20)
    assert doubts(one_class, [1] * 20, ids) == []


def test_doubts_look_at_labelled_images_alone() -> None:
    ids = ["ant", "bee", "cat"]
    samples = images_of(ids, 10)
    answers = [sample.class_index or 0 for sample in samples]
    extra = [make_sample(ImageSource(Path("/data"), f"x/{k}.JPEG"), None) for k in range(60)]
    assert doubts([*samples, *extra], [*answers, *[0] * 60], ids) == []
