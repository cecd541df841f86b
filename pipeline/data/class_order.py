"""The order of class folders: as text, as torchvision sorts them, or by the numbers in their names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.config.choices import ClassOrder
from pipeline.errors import DataError

_NUMBERED = re.compile(r"([^0-9]*)([0-9]+)(.*)", re.DOTALL)
_SHOWN = 5


def arrange(names: Sequence[str], order: ClassOrder | None) -> list[str]:
    """Return class names in an order; None is text.

    Raises:
        DataError: numeric, but the names are not one common prefix followed by a number.
    """
    if order is not ClassOrder.NUMERIC:
        return sorted(names)
    arranged = by_number(names)
    if arranged is None:
        strange = next((name for name in sorted(names) if not _NUMBERED.fullmatch(name)), None)
        found = f"{strange!r} holds none" if strange is not None else "what stands before the numbers differs"
        raise DataError(
            f"dataset.class_order: numeric, but the class folders are no numbers ({found}); wanted names such as 0, 1, "
            "2 or class1, class2; set it to text"
        )
    return arranged


def by_number(names: Sequence[str]) -> list[str] | None:
    """Return the names in the order of their numbers; None unless they are one common prefix followed by a number."""
    parts = [_NUMBERED.fullmatch(name) for name in names]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts) or len({part[1] for part in found}) != 1:
        return None
    return [part[0] for part in sorted(found, key=lambda part: (int(part[2]), part[3], part[2]))]


def other_order(names: Sequence[str]) -> tuple[ClassOrder, list[str]] | None:
    """Return the classes in the other of both orders; None where both are the same."""
    numeric, text = by_number(names), sorted(names)
    if numeric is None or numeric == text or list(names) not in (numeric, text):
        return None
    return (ClassOrder.TEXT, text) if list(names) == numeric else (ClassOrder.NUMERIC, numeric)


def shown(names: Sequence[str]) -> str:
    """Return the first few names."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def note(names: Sequence[str]) -> str | None:
    """Return a line for a user who chose no order, where it makes a difference; `names` are sorted as text."""
    numeric = by_number(names)
    if numeric is None or numeric == list(names):
        return None
    return (
        f"class folders are numbers, sorted as text ({shown(names)}), as torchvision does; in numeric order they are "
        f"{shown(numeric)}: set dataset.class_order: numeric in the build file if the network was trained so, else text"
    )
