"""counts.py: numbers with their nouns."""

from __future__ import annotations

import pytest

from pipeline.terminal.counts import counted


@pytest.mark.parametrize(
    ("number", "nouns", "text"),
    [
        (0, ("stream",), "0 streams"),
        (1, ("stream",), "1 stream"),
        (2, ("process", "processes"), "2 processes"),
        (1, ("process", "processes"), "1 process"),
    ],
)
def test_counted_takes_the_form_of_the_number(number: int, nouns: tuple[str, ...], text: str) -> None:
    assert counted(number, *nouns) == text
