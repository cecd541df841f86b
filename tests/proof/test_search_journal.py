"""search_journal.py: what is tried next, what is kept, and that it is all on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.proof.changes import BFLOAT16, Candidates, Change, How, Step
from pipeline.proof.judge import CandidateFigures
from pipeline.proof.search_journal import Journal
from pipeline.quant.splitting import Split

FIGURES = CandidateFigures(agreement=99.0, kl=0.001, sqnr_db=30.0, drop=None, speed=0.9)


SUMS, JOIN = Change("s", How.SUMS), Change("s", How.JOIN)
FEW, MANY = Split([1, 0], 3.0, 0.5), Split([1, 0, 3, 2], 2.0, 0.25)


def journal(path: Path) -> Journal:
    made = Journal(path)
    made.add(Step("", True, FIGURES, 1.0))
    costs = {"a": 0.4, "b": 0.2, "c": 0.05}
    slowdowns = {"a split, 2 channels": 0.02, "a split, 4 channels": 0.03, str(SUMS): 0.03, str(JOIN): 0.01}
    gains = {str(SUMS): 0.25, str(JOIN): 0.08}
    streams, joins = {"s": ["add1", "add2"]}, {"s": ["add1"]}
    rounding = {"a": 0.3, "b": 0.2, "c": 0.04}  # and the weights of the layers that read them
    found = Candidates(costs, rounding, {"a": [FEW, MANY]}, streams, joins, gains, slowdowns, {}, 1.0)
    made.set_candidates(found, 2.0)
    return made


def split_step(channels: int, *, kept: bool, speed: float | None = 0.9) -> Step:
    return Step("a", kept, replace(FIGURES, speed=speed), 1.0, How.SPLIT, channels)


def test_what_saves_most_for_its_time_comes_first_and_float32_last(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    few, many = Change("a", How.SPLIT, 2), Change("a", How.SPLIT, 4)
    others = [Change("b"), Change("c")]
    # .15 for .02, .25 for .03, .08 for .01
    assert [change for change, _ in made.waiting()] == [SUMS, JOIN, few, *others]
    made.add(split_step(2, kept=True))
    # .075 more for .01 more
    assert [change for change, _ in made.waiting()] == [SUMS, JOIN, many, *others]
    assert made.waiting()[2][1] == pytest.approx((0.5 - 0.25) * 0.3)
    assert made.split() == {"a": FEW} and made.in_float() == []
    made.add(split_step(4, kept=True))
    assert made.split() == {"a": MANY}
    assert made.waiting()[2:4] == [(Change("b"), 0.2), (Change("a"), pytest.approx(0.4 - 0.75 * 0.3))]
    made.add(Step("a", True, FIGURES, 1.0))
    assert made.split() == {} and made.in_float() == ["a"]


def test_more_channels_are_not_split_where_few_were_too_slow(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    made.add(split_step(2, kept=False))
    assert made.waiting()[2] == (Change("a"), 0.4)
    made.lose(Change("a"), "died", 1.0)
    assert [change for change, _ in made.waiting()] == [SUMS, JOIN, Change("b"), Change("c")]


def test_more_channels_are_split_where_few_bought_too_little(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    made.add(split_step(2, kept=False, speed=None))
    gains = {str(change): gain for change, gain in made.waiting()}
    change = Change("a", How.SPLIT, 4)
    assert gains[str(change)] == pytest.approx(0.75 * 0.3)
    assert str(change) == "a split, 4 channels"


def test_a_journal_goes_on_where_another_one_was(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    made.add(split_step(4, kept=True))
    made.lose(Change("b"), "died", 1.0)
    found = Journal(tmp_path / "journal.json")
    assert (found.steps, found.lost, found.candidates) == (made.steps, made.lost, made.candidates)
    assert found.seconds == made.seconds == 5.0
    assert found.waiting() == made.waiting()
    assert found.kept() == [Change("a", How.SPLIT, 4)] and found.split() == {"a": MANY}


def test_sums_of_a_stream_that_were_kept_stay_in_float(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    assert made.sums_in_float() == [] and made.trials() == 7
    made.add(Step("s", True, FIGURES, 1.0, How.SUMS))
    assert made.sums_in_float() == ["add1", "add2"] and made.in_float() == []
    assert not {SUMS, JOIN} & {change for change, _ in made.waiting()}


def test_a_stream_whose_first_sum_was_kept_is_tried_for_the_rest(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    made.add(Step("s", True, FIGURES, 1.0, How.JOIN))
    assert made.sums_in_float() == ["add1"]
    (rest,) = [gain for change, gain in made.waiting() if change == SUMS]
    assert rest == pytest.approx(0.25 - 0.08)
    made.add(Step("s", True, FIGURES, 1.0, How.SUMS))
    assert made.sums_in_float() == ["add1", "add2"]


def test_bfloat16_is_tried_once_something_was_left_in_float(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    made.add(split_step(4, kept=True))
    assert not made.can_be_halved()
    made.add(Step("s", True, FIGURES, 1.0, How.SUMS))
    assert made.can_be_halved()
    made.add(Step(BFLOAT16.activation, False, FIGURES, 1.0, BFLOAT16.how))
    assert not made.can_be_halved()


def test_bfloat16_is_not_tried_again_when_no_runtime_opened_that_model(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    made.add(Step("s", True, FIGURES, 1.0, How.SUMS))
    made.lose(BFLOAT16, "lost", 1.0)
    assert not made.can_be_halved()
    assert not Journal(tmp_path / "journal.json").can_be_halved()


@pytest.mark.parametrize("better", [True, False])
def test_bfloat16_stays_only_if_what_it_made_room_for_is_better_than_float32(better: bool, tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    made.add(Step("s", True, replace(FIGURES, kl=0.0008), 1.0, How.SUMS))
    made.add(Step(BFLOAT16.activation, True, replace(FIGURES, kl=0.0009), 1.0, BFLOAT16.how))
    made.add(Step("a", True, replace(FIGURES, kl=0.0007 if better else 0.00085), 1.0, How.SPLIT, 4))
    made.take_back_bfloat16()
    assert made.kept() == ([SUMS, BFLOAT16, Change("a", How.SPLIT, 4)] if better else [SUMS])
    assert Journal(tmp_path / "journal.json").steps == made.steps
    made.take_back_bfloat16()
    assert made.best().figures.kl == (0.0007 if better else 0.0008)


def test_bfloat16_does_not_stay_by_itself(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    made.add(Step("s", True, replace(FIGURES, kl=0.0008), 1.0, How.SUMS))
    made.add(Step(BFLOAT16.activation, True, replace(FIGURES, kl=0.0007), 1.0, BFLOAT16.how))
    made.take_back_bfloat16()
    assert made.kept() == [SUMS]
