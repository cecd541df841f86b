"""search_journal.py: what is tried next, what is kept, and that it is all on disk."""

from __future__ import annotations

from pathlib import Path

from pipeline.proof.judge import CandidateFigures
from pipeline.proof.search_journal import Candidates, Change, How, Journal, Step

FIGURES = CandidateFigures(agreement=99.0, kl=0.001, sqnr_db=30.0, drop=None, speed=0.9)


def journal(path: Path) -> Journal:
    made = Journal(path)
    made.add(Step("", True, FIGURES, 1.0))
    costs = {"a": 0.4, "b": 0.2, "c": 0.05}
    made.set_candidates(Candidates(costs, {"a": [1, 0]}, {"s": ["add1", "add2"]}, {"s": 0.25}), 2.0)
    return made


def test_an_activation_that_can_be_split_is_split_first_and_then_left_in_float(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    assert [change for change, _ in made.waiting()] == [
        Change("a", How.SPLIT),
        Change("s", How.SUMS),
        Change("b"),
        Change("c"),
    ]
    made.add(Step("a", True, FIGURES, 1.0, How.SPLIT))
    assert made.waiting()[2] == (Change("a"), 0.25 * 0.4)
    assert made.split() == {"a": [1, 0]} and made.in_float() == []
    made.add(Step("a", True, FIGURES, 1.0))
    assert made.split() == {} and made.in_float() == ["a"]


def test_an_activation_whose_split_was_not_kept_is_tried_in_float_for_all_of_its_cost(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    made.add(Step("a", False, FIGURES, 1.0, How.SPLIT))
    assert made.waiting()[1] == (Change("a"), 0.4)
    made.lose(Change("a"), "died", 1.0)
    assert [change for change, _ in made.waiting()] == [Change("s", How.SUMS), Change("b"), Change("c")]


def test_a_journal_goes_on_where_another_one_was(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    made.add(Step("a", True, FIGURES, 1.0, How.SPLIT))
    made.lose(Change("b"), "died", 1.0)
    found = Journal(tmp_path / "journal.json")
    assert (found.steps, found.lost, found.candidates) == (made.steps, made.lost, made.candidates)
    assert found.seconds == made.seconds == 5.0
    assert found.waiting() == made.waiting()
    assert found.kept() == [Change("a", How.SPLIT)]


def test_sums_of_a_stream_that_were_kept_stay_in_float(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    assert made.sums_in_float() == [] and made.trials() == 5
    made.add(Step("s", True, FIGURES, 1.0, How.SUMS))
    assert made.sums_in_float() == ["add1", "add2"] and made.in_float() == []
    assert Change("s", How.SUMS) not in [change for change, _ in made.waiting()]
