"""narrowing.py: what narrower ranges cost by gradients, and which are chosen."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.quant.narrowing import SHARES, Cuts, narrow
from pipeline.quant.qmath import Range

WIDE, EVEN = Range(0.0, 10.0), Range(-4.0, 4.0)


def tails(gradient: float) -> tuple[np.ndarray, np.ndarray]:
    """Return values of which one in a hundred lies beyond half of the range, and their gradients."""
    values = np.full(100, 1.0, np.float32)
    values[0] = 9.0
    return values, np.full(100, gradient, np.float32)


def test_what_is_cut_off_adds_up_before_it_is_squared() -> None:
    cuts = Cuts({"a": WIDE, "b": EVEN})
    cuts.add("a", np.array([[7.0, 9.0, 1.0]], np.float32), np.array([[1.0, -2.0, 5.0]], np.float32))
    cuts.add("a", np.array([[0.0, 1.0, 2.0]], np.float32), np.array([[1.0, 1.0, 1.0]], np.float32))
    at = int(np.argmin(np.abs(SHARES - 0.5)))
    # 2 and 4 beyond 5: half of (1 * 2 - 2 * 4)^2, the mean of two images; rounding in steps half as wide.
    assert cuts.costs("a", 0.8)[at] == pytest.approx(0.5 * 36 / 2 + 0.8 / 4)
    assert cuts.cost("a", 0.8, 0.5) == cuts.costs("a", 0.8)[at]
    assert cuts.costs("a", 0.8)[0] == pytest.approx(0.8)
    cuts.add("b", np.array([-4.0, 4.0, 1.0], np.float32), np.array([1.0, 0.5, 9.0], np.float32))
    assert cuts.cost("b", 0.0, 0.75) == pytest.approx(0.5 * (-1.0 + 0.5) ** 2)


def test_ranges_are_narrowed_where_the_answers_do_not_hang_on_the_largest_values() -> None:
    cuts = Cuts({"idle": WIDE, "vital": WIDE, "cheap": WIDE})
    for name, gradient in (("idle", 0.0), ("vital", 10.0), ("cheap", 0.0)):
        cuts.add(name, *tails(gradient))
    rounding = {"idle": 1.0, "vital": 1.0, "cheap": 1e-4}
    found = cuts.choose(rounding)
    # Nine tenths of what .4 of the range would save, 1 - .16.
    assert found["idle"] == pytest.approx(SHARES[SHARES**2 <= 1 - 0.9 * (1 - 0.4**2)][0])
    assert found["vital"] == pytest.approx(0.9)  # up to the value that counts
    assert "cheap" not in found
    assert cuts.best("vital", 0.0) == 1.0


def test_narrow_leaves_other_ranges_as_they_are() -> None:
    found = narrow({"a": WIDE, "b": EVEN, "c": WIDE}, {"a": 0.5, "b": 0.75})
    assert found == {"a": Range(0.0, 5.0), "b": Range(-3.0, 3.0), "c": WIDE}
