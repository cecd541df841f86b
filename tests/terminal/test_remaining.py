from __future__ import annotations

import pytest

from pipeline.terminal.remaining import Remaining, in_words


def test_seconds_are_what_is_expected_when_nothing_was_measured() -> None:
    left = Remaining({"a": 30, "b": 60})
    assert left.seconds(0) == 90
    left.begin("a", 100)
    assert left.seconds(100) == 90
    assert left.seconds(110) == 80  # it does not say how far it is: its time runs down


def test_seconds_follow_the_pace_of_finished_steps() -> None:
    left = Remaining({"a": 30, "b": 60})
    left.begin("a", 0)
    left.end(90)  # three times as long
    pace = (10 + 90) / (10 + 30)
    assert left.seconds(90) == pytest.approx(60 * pace)
    left.begin("b", 90)
    assert left.seconds(100) == pytest.approx(60 * pace - 10)


def test_seconds_follow_the_present_step_the_more_of_it_is_done() -> None:
    left = Remaining({"a": 100, "b": 100})
    left.begin("a", 0)
    left.tell(0.25)  # after 50 s: twice as slow as expected
    pace = (10 + 50) / (10 + 25)
    assert left.seconds(50) == pytest.approx(100 * pace + 0.75 * (0.75 * 100 * pace + 50))
    left.tell(0.9)
    pace = (10 + 180) / (10 + 90)
    assert left.seconds(180) == pytest.approx(100 * pace + 0.1 * (0.1 * 100 * pace + 180))
    left.tell(1.0)
    assert left.seconds(200) == pytest.approx(100 * (10 + 200) / (10 + 100))


def test_seconds_are_exact_when_expectations_are_off_by_a_factor_and_work_is_even() -> None:
    """Steps of 10, 200 and 40 units where a unit takes 3 s instead of 1: near the end the estimate is right."""
    left, now = Remaining({"a": 10, "b": 200, "c": 40}), 0.0
    for step, units in (("a", 10), ("b", 200), ("c", 40)):
        left.begin(step, now)
        for unit in range(1, units + 1):
            now += 3
            left.tell(unit / units)
            if now > 150:
                assert left.seconds(now) == pytest.approx(750 - now, rel=0.1, abs=1)
        left.end(now)
    assert left.seconds(now) == 0


def test_step_that_overruns_has_a_tenth_of_its_time_left() -> None:
    left = Remaining({"a": 10, "b": 5})
    left.begin("a", 0)
    assert left.seconds(200) == pytest.approx(5 + 20)


def test_share_never_goes_back_and_unexpected_steps_count_nothing() -> None:
    left = Remaining({"a": 10})
    left.begin("surprise", 0)
    left.tell(0.5)
    left.tell(0.2)
    assert left.share_of_step == 0.5
    left.end(0)
    left.begin("a", 0)
    assert left.share_of_step == 0
    left.tell(7)
    assert left.share_of_step == 1


def test_expect_changes_what_is_left_and_nothing_that_is_done() -> None:
    left = Remaining({"a": 10, "b": 20, "c": 30})
    left.begin("a", 0)
    left.end(10)
    left.expect({"a": 99, "b": 40, "unknown": 50})
    assert left.seconds(10) == 70


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3, "a few seconds left"),
        (14, "about 10 s left"),
        (86, "about 90 s left"),
        (91, "about 2 min left"),
        (5 * 60 + 20, "about 5 min left"),
        (2 * 3600 + 5 * 60, "about 2 h 0 min left"),
        (3 * 3600 + 47 * 60, "about 3 h 40 min left"),
    ],
)
def test_in_words_is_no_finer_than_what_is_known(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
