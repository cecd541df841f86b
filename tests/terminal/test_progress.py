from __future__ import annotations

import io
import sys

import pytest

from pipeline.terminal.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_writes_whole_lines_to_a_log_file(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(50, "convert", "img", done=10) as bar:
        for _ in range(40):
            bar.update(1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err
    lines = err.splitlines()
    assert all(line.startswith("convert: ") for line in lines)
    assert "10/50" in lines[0]
    assert "50/50" in lines[-1]
    assert len(lines) == 2  # the start and the end: what lies between took less than the time between lines


def test_bar_of_work_limited_by_time_counts_without_a_total(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(None, "bench", "img") as bar:
        bar.update(22)
    assert "22img" in capsys.readouterr().err.splitlines()[-1]


def test_bar_redraws_one_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(3, "read", "img") as bar:
        bar.update(3)
    assert terminal.getvalue().count("\n") == 1
    assert "\r" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()


def test_bar_closes_its_line_when_the_work_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), progress_bar(3, "read", "img") as bar:
        bar.update(1)
        raise KeyboardInterrupt
    assert capsys.readouterr().err.endswith("\n")
