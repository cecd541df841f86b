"""Init: label lists of the tables of labels that lie with images which no folders label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.artefacts import whole_file
from pipeline.data.imagenet import Dataset
from pipeline.data.label_tables import LabelTable, are_numbers, find_table, label_lines, misfit


@dataclass(frozen=True)
class Order:
    """What is known of the classes of a table."""

    names: Sequence[str] | None  # in the order of the network's outputs
    count: int | None  # of the network, or of the calibration images
    fixed: bool = False  # the names are all there are: a table of others is not taken


@dataclass(frozen=True)
class ListMade:
    path: Path | None = None  # the label list that was written; None: none
    notes: tuple[str, ...] = ()  # what was found, a line each


def make_list(folder: Path, dataset: Dataset, target: Path | None, order: Order, flag: str) -> ListMade:
    """Write a label list of a table that lies with images.

    Args:
        folder: of the images.
        dataset: the images in it.
        target: the file to write; None: the build file goes to standard output, and the table is only named.
        order: of the classes.
        flag: that gives a list by hand, for a message.
    """
    in_folders = dataset.samples[0].class_index is not None and len(dataset.classes) > 1
    table = None if in_folders else find_table(folder, dataset.samples)
    if table is None:
        return ListMade()
    why = _why_not(table, order)
    if target is None or not table.label_of or why:
        return ListMade(notes=(f"{table.file} {why or 'is no label list'}; give one, lines 'name index', by {flag}",))
    lines, names = label_lines(table, order.names)
    with whole_file(target) as scratch:
        scratch.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")  # as names of files may be
    shown = f", classes in the order {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else ""
    said = f"labels of {len(lines)} images are column {table.column!r} of {table.file}{shown}: {target}"
    return ListMade(target, (said,))


def _why_not(table: LabelTable, order: Order) -> str:
    """Return why no list can be made of a table; nothing where one can."""
    if not table.label_of:
        return table.fault
    if not all(label.isprintable() for label in table.label_of.values()):  # lone surrogates stand for other bytes
        return f"is not taken: column {table.column!r} is not all text in UTF-8; save the table as UTF-8"
    if order.fixed and not are_numbers(table):
        others = sorted(set(table.label_of.values()) - set(order.names or ()))
        if others:
            return f"is not taken: column {table.column!r} names {others[0]!r}, which no class of the images is"
        return ""
    wrong = misfit(table, order.count)
    of = "images have" if order.fixed else "network has"
    return f"is not taken: column {table.column!r} {wrong}, but the {of} {order.count} classes" if wrong else ""
