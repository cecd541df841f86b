"""summary.py: how a trial of a search for a goal is told."""

from __future__ import annotations

from pipeline.proof.changes import Change, How, Step
from pipeline.proof.judge import CandidateFigures
from pipeline.reports.summary import how_of

FIGURES = CandidateFigures(agreement=99.0, kl=0.001, sqnr_db=30.0, drop=None, speed=0.9)


def test_how_of_tells_which_kept_changes_a_trial_gave_up() -> None:
    given_up = (Change("sum", How.SUMS), Change("other", How.SPLIT, 16))
    step = Step("relu", True, FIGURES, 1.0, How.SPLIT, 32, given_up).as_document()
    assert how_of(step) == ("split, 32 channels, in the place of sum and later sums in float; other split, 16 channels")


def test_how_of_reads_what_earlier_versions_wrote() -> None:
    assert how_of({"activation": "relu", "split": True}) == "split"
    assert how_of({"activation": "relu", "how": "in float", "channels": 0}) == "in float"
