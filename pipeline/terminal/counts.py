"""Numbers of things, as sentences say them."""

from __future__ import annotations


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: `1 process`, `2 processes`.

    Args:
        number: how many.
        one: the noun for 1.
        many: the noun for every other number; None: `one` with an s.
    """
    return f"{number} {one if number == 1 else many or one + 's'}"
