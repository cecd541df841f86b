"""search_journal.py: what is tried next, what is kept, and that it is all on disk."""

from __future__ import annotations

from pathlib import Path

from pipeline.proof.judge import CandidateFigures
from pipeline.proof.search_journal import Change, Journal, Step

FIGURES = CandidateFigures(agreement=99.0, kl=0.001, sqnr_db=30.0, drop=None, speed=0.9)


def journal(path: Path) -> Journal:
    made = Journal(path)
    made.add(Step("", True, FIGURES, 1.0))
    made.set_candidates({"a": 0.4, "b": 0.2, "c": 0.05}, {"a": [1, 0]}, 2.0)
    return made


def test_an_activation_that_can_be_split_is_split_first_and_then_left_in_float(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    assert [change for change, _ in made.waiting()] == [Change("a", split=True), Change("b"), Change("c")]
    made.add(Step("a", True, FIGURES, 1.0, split=True))
    assert made.waiting()[1] == (Change("a"), 0.25 * 0.4)
    assert made.split() == {"a": [1, 0]} and made.in_float() == []
    made.add(Step("a", True, FIGURES, 1.0))
    assert made.split() == {} and made.in_float() == ["a"]


def test_an_activation_whose_split_was_not_kept_is_tried_in_float_for_all_of_its_cost(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    made.add(Step("a", False, FIGURES, 1.0, split=True))
    assert made.waiting()[0] == (Change("a"), 0.4)
    made.lose(Change("a"), "died", 1.0)
    assert [change for change, _ in made.waiting()] == [Change("b"), Change("c")]


def test_a_journal_goes_on_where_another_one_was(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    made.add(Step("a", True, FIGURES, 1.0, split=True))
    made.lose(Change("b"), "died", 1.0)
    found = Journal(tmp_path / "journal.json")
    assert (found.steps, found.lost, found.costs, found.channels) == (made.steps, made.lost, made.costs, made.channels)
    assert found.seconds == made.seconds == 5.0
    assert found.waiting() == made.waiting()
    assert found.kept() == [Change("a", split=True)]
