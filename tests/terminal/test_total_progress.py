"""The one line of work in several steps, on a terminal that only remembers what is written to it."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator

import pytest

from pipeline.terminal import console
from pipeline.terminal.progress import progress_bar
from pipeline.terminal.total_progress import present, whole_work


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What stands on the screen: a carriage return and an erasure begin the line again."""
        return [line.rpartition("\r\x1b[K")[2] for line in self.getvalue().split("\n")]


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    yield
    console.configure(quiet=True)


def make_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make a terminal of both streams. In the test itself: pytest sets its own streams between fixtures and test."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setattr(sys, "stdout", made)
    console.configure()
    return made


def test_line_shows_the_step_and_what_is_left_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    with whole_work({"a": 60, "b": 540}) as whole:
        with whole.step("a", "[1/2] a"):
            with progress_bar(8, "images", "img", span=(0, 0.5)) as bar:
                bar.update(4)
            whole.draw()
            assert terminal.lines()[-1].startswith("[1/2] a 25%   all 0%, about ")
            assert terminal.lines()[-1].endswith(" min left")
            console.step("a line")
            assert terminal.lines()[-2] == "a line"
            assert terminal.lines()[-1].startswith("[1/2] a 25%")
        with whole.step("b", "[2/2] b"):
            assert terminal.lines()[-1].startswith("[2/2] b   all 0%, about ")
    assert terminal.lines() == ["a line", ""]
    assert present() is None


def test_line_is_drawn_again_while_a_step_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    with whole_work({"a": 60}) as whole, whole.step("a", "[1/1] a"):
        drawn = terminal.getvalue().count("[1/1] a")
        deadline = time.monotonic() + 20
        while terminal.getvalue().count("[1/1] a") == drawn:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_line_is_gone_when_a_step_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    with pytest.raises(KeyboardInterrupt), whole_work({"a": 60}) as whole, whole.step("a", "[1/1] a"):
        raise KeyboardInterrupt
    assert terminal.lines() == [""]
    assert present() is None


def test_nothing_is_drawn_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure()
    with whole_work({"a": 60}) as whole:
        with whole.step("a", "[1/1] a"), progress_bar(8, "images", "img", span=(0, 1)) as bar:
            bar.update(8)
        assert whole.left() == "a few seconds left"
    assert "".join(capsys.readouterr()) == ""


def test_programs_get_bars_and_what_is_left_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure(json_lines=True)
    with (
        whole_work({"a": 1, "b": 3}) as whole,
        whole.step("a", "[1/2] a"),
        progress_bar(8, "images", "img", span=(0, 1)) as bar,
    ):
        bar.update(8)
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(event["what"], event["total"]) for event in events][-2:] == [("images", 8), ("all", 100)]
    assert events[-1]["unit"] == "%"
    assert events[-1]["seconds_left"] == pytest.approx(3 * (10 + 0) / (10 + 1), abs=0.1)
