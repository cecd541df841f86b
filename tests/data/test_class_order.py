from __future__ import annotations

import pytest

from pipeline.config.choices import ClassOrder
from pipeline.data.class_order import arrange, by_number, note, other_order
from pipeline.errors import DataError


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["0", "1", "10", "11", "2"], ["0", "1", "2", "10", "11"]),
        (["class1", "class10", "class2"], ["class1", "class2", "class10"]),
        (["n1", "n10", "n2"], ["n1", "n2", "n10"]),
        (["1_tench", "10_cock", "2_goldfish"], ["1_tench", "2_goldfish", "10_cock"]),
        (["1", "01", "2"], ["01", "1", "2"]),
        (["007", "010", "2"], ["2", "007", "010"]),
        (["cat", "dog"], None),
        (["cat", "1"], None),
        (["a1", "b2"], None),
        (["\u0661", "\u0662"], None),  # digits, but none that folders are numbered by
    ],
)
def test_by_number_sorts_names_that_begin_alike_and_go_on_with_a_number(
    names: list[str], expected: list[str] | None
) -> None:
    assert by_number(names) == expected


@pytest.mark.parametrize("names", [["000", "001", "010"], ["n01440764", "n01443537"], ["1", "2", "3"], ["cat", "dog"]])
def test_note_says_nothing_when_both_orders_are_one(names: list[str]) -> None:
    assert note(names) is None
    assert other_order(names) is None
    if by_number(names):
        assert arrange(names, ClassOrder.NUMERIC) == arrange(names, None) == sorted(names)


def test_note_shows_both_orders_and_how_to_choose() -> None:
    assert note(sorted(map(str, range(12)))) == (
        "class folders are numbers, sorted as text (0, 1, 10, 11, 2, ...), as torchvision does; in numeric order they "
        "are 0, 1, 2, 3, 4, ...: set dataset.class_order: numeric in the build file if the network was trained so, "
        "else text"
    )


def test_other_order_is_the_one_that_classes_are_not_in() -> None:
    text, numeric = ["1", "10", "2"], ["1", "2", "10"]
    assert other_order(text) == (ClassOrder.NUMERIC, numeric)
    assert other_order(numeric) == (ClassOrder.TEXT, text)
    assert other_order(["2", "1", "10"]) is None  # a list has an order of its own


def test_arrange_says_what_is_no_number() -> None:
    with pytest.raises(DataError, match="'cat' holds none"):
        arrange(["1", "cat"], ClassOrder.NUMERIC)
    with pytest.raises(DataError, match="what stands before the numbers differs"):
        arrange(["a1", "b2"], ClassOrder.NUMERIC)
