"""exchange.py: a change that did not fit takes the place of what buys least for its time."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.proof.changes import BFLOAT16, Candidates, Change, How, Step, apply
from pipeline.proof.exchange import find_exchange, may_fit
from pipeline.proof.judge import CandidateFigures
from pipeline.proof.search_journal import Journal
from pipeline.quant.splitting import Split

GOOD, POOR, SPLIT = Change("good", How.SUMS), Change("poor", How.SUMS), Change("a", How.SPLIT, 4)
FEW = Change("a", How.SPLIT, 2)


def figures(distance: float, speed: float | None) -> CandidateFigures:
    """Return figures whose KL and share of noise are both `distance` thousandths."""
    from math import log10

    return CandidateFigures(99.0, 0.001 * distance, -10 * log10(0.001 * distance), None, speed)


def journal(path: Path) -> Journal:
    """Return one after two small changes were kept and a large one was too slow beside them."""
    made = Journal(path)
    made.add(Step("", True, figures(1.0, 1.0), 1.0))
    ways = [Split([0, 1, 2, 3], 2.0, 0.25)]
    slowdowns = {str(Change("a")): 0.5, str(SPLIT): 0.12, str(FEW): 0.06, str(GOOD): 0.02, str(POOR): 0.04}
    gains = {str(GOOD): 0.1, str(POOR): 0.05}
    streams = {"good": ["add1"], "poor": ["add2"]}
    fewer = {"a": [Split([0, 1], 3.0, 0.9)]}
    made.set_candidates(Candidates({"a": 0.4}, {"a": 0.4}, {"a": ways}, streams, {}, gains, slowdowns, fewer, 1.0), 1.0)
    made.add(Step("good", True, figures(0.9, 1 / 1.02), 1.0, How.SUMS))
    made.add(Step("poor", True, figures(0.88, 1 / 1.06), 1.0, How.SUMS))
    made.add(Step("a", False, figures(0.58, 1 / 1.2), 1.0, How.SPLIT, 4))
    return made


def test_what_buys_least_for_its_time_is_given_up_for_what_was_too_slow_beside_it(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    found = find_exchange(made, least_speed=1 / 1.165)
    assert found is not None and (found.change, found.without) == (SPLIT, (POOR,))
    # Measured: the split saves .3 of .88, and what is given up .02.
    assert found.distance == pytest.approx(0.6 / 0.88, rel=0.05)
    made.add(Step("a", True, figures(0.6, 1 / 1.16), 1.0, How.SPLIT, 4, found.without))
    assert made.kept() == [GOOD, SPLIT] and made.sums_in_float() == ["add1"] and set(made.split()) == {"a"}
    again = Journal(tmp_path / "journal.json")
    assert again.steps == made.steps and again.candidates == made.candidates
    assert again.models()[-1][0] == [GOOD, SPLIT]


def test_further_ways_to_split_are_taken_where_time_is_short(tmp_path: Path) -> None:
    found = find_exchange(journal(tmp_path / "journal.json"), least_speed=1 / 1.13)
    assert found is not None and found.change == FEW and found.without == ()


def test_nothing_is_exchanged_where_everything_that_fits_was_tried(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    assert find_exchange(made, least_speed=1 / 1.065) is None
    made.lose(SPLIT, "died", 1.0)
    made.lose(FEW, "died", 1.0)
    assert find_exchange(made, least_speed=0.1) is None
    assert find_exchange(Journal(tmp_path / "other.json"), least_speed=0.1) is None


def test_changes_may_fit_that_leave_enough_time_at_half_of_what_they_should_take(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")  # .06 is taken; float32 should take .5
    in_float = Change("a")
    assert may_fit(made, in_float, least_speed=1 / 1.35)
    assert not may_fit(made, in_float, least_speed=1 / 1.27)
    assert may_fit(Journal(tmp_path / "other.json"), in_float, least_speed=0.99)  # nothing is known


def test_a_change_takes_the_place_of_others_of_its_activation() -> None:
    join, whole, in_float = Change("good", How.JOIN), GOOD, Change("a")
    assert apply([join, FEW], whole) == [FEW, whole]
    assert apply([whole, FEW], SPLIT) == [whole, SPLIT]
    assert apply([whole, SPLIT], in_float) == [whole, in_float]
    assert apply([whole, SPLIT], POOR, without=[whole]) == [SPLIT, POOR]


def test_what_was_too_slow_is_tried_again_with_the_time_that_bfloat16_gains(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    assert find_exchange(made, least_speed=1 / 1.07) is None
    made.add(Step(BFLOAT16.activation, True, figures(0.89, 1 / 0.99), 1.0, BFLOAT16.how))
    found = find_exchange(made, least_speed=1 / 1.15)
    assert found is not None and found.change == SPLIT and BFLOAT16 not in found.without
    made.add(Step("a", True, figures(0.6, 1 / 1.13), 1.0, How.SPLIT, 4, found.without))
    assert BFLOAT16 in made.kept()


def test_a_model_in_bfloat16_that_was_not_kept_does_not_change_what_float32_should_take(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.json")
    before = find_exchange(made, least_speed=1 / 1.165)
    made.add(Step(BFLOAT16.activation, False, figures(1.5, 1 / 0.8), 1.0, BFLOAT16.how))
    assert find_exchange(made, least_speed=1 / 1.165) == before is not None
