"""Tables of labels beside images: metadata.csv of Hugging Face's image folders, labels.csv, train.csv, JSON lines.

`init` makes a label list of one; a build reads label lists only.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.class_tree import TABLE_SUFFIXES
from pipeline.data.imagenet import Sample
from pipeline.data.list_files import image_stem, read_lines
from pipeline.data.sources import ImageSource, scan
from pipeline.data.storage import Location
from pipeline.errors import DataError

_BESIDE = ("metadata", "labels", "annotations", "train", "val", "test")  # beside the folder; the folder's own name too
_LABELS = ("label", "labels", "class", "class_name", "class_id", "category", "target", "species", "breed", "y")
_MOST_DIGITS = 10  # of a class index
_LEAST_NAMED = 0.5  # of the images that a table has to name

Row = Mapping[str, str]


@dataclass(frozen=True)
class LabelTable:
    """A table that names images of a data set."""

    file: Path | ImageSource
    column: str | None  # that holds the labels; None where none is recognised
    label_of: Mapping[str, str]  # by the images' names below the root; empty without a column
    fault: str = ""  # why it cannot be taken for labels


def find_table(path: Location, samples: Sequence[Sample]) -> LabelTable | None:
    """Return the table in or beside a folder that names most of its images; None where none names half of them."""
    listing = scan(path)
    within: list[Path | ImageSource] = [file for file in listing.files if file.name.lower().endswith(TABLE_SUFFIXES)]
    beside: list[Path | ImageSource] = []
    if isinstance(listing.root, Path):
        stems = dict.fromkeys((listing.root.name, f"{listing.root.name}_labels", *_BESIDE))
        names = (listing.root.parent / f"{stem}{suffix}" for stem in stems for suffix in TABLE_SUFFIXES)
        beside = [each for each in names if each.is_file()]
    best: tuple[int, LabelTable] | None = None
    for file in (*within, *beside):
        named, table = _read(file, samples)
        if named >= _LEAST_NAMED * len(samples) and (best is None or named > best[0]):
            best = named, table
    return None if best is None else best[1]


def _read(file: Path | ImageSource, samples: Sequence[Sample]) -> tuple[int, LabelTable]:
    """Return a table, and how many of the images it names."""
    try:
        rows = _rows(file)
    except (DataError, ValueError, csv.Error):  # a file of another kind
        return 0, LabelTable(file, None, {}, "cannot be read")
    by_name: dict[str, str] = {}
    for sample in samples:
        for key in (sample.source.name, sample.key, sample.name):
            by_name.setdefault(key, sample.source.name)
    columns = dict.fromkeys(column for row in rows for column in row)
    images = {column: {_image(row.get(column, ""), by_name) for row in rows} - {None} for column in columns}
    names = max(columns, key=lambda column: len(images[column]), default="")
    if not names or not images[names]:
        return 0, LabelTable(file, None, {}, "names none of the images")
    labels = _label_column([column for column in columns if column != names], rows)
    if labels is None:
        return len(images[names]), LabelTable(file, None, {}, f"has no column {', '.join(_LABELS[:4])} or the like")
    found: dict[str, str] = {}
    for row in rows:
        image, label = _image(row.get(names, ""), by_name), row.get(labels, "").strip()
        if image is not None and label and found.setdefault(image, label) != label:
            return len(images[names]), LabelTable(file, labels, {}, f"gives {Path(image).name} several labels")
    return len(images[names]), LabelTable(file, labels, found)


def _rows(file: Path | ImageSource) -> list[Row]:
    """Return the rows of a table by column, as text.

    Raises:
        DataError, ValueError, csv.Error: it is none.
    """
    name = file.name.lower()
    lines = [line for line in read_lines(file) if line.strip()]
    if name.endswith(".jsonl"):
        records = [json.loads(line) for line in lines]
        if not all(isinstance(record, dict) for record in records):
            raise ValueError("no records")
        return [{key: str(value) for key, value in record.items() if _is_plain(value)} for record in records]
    head = lines[0] if lines else ""
    delimiter = "\t" if name.endswith(".tsv") else max(",;\t", key=head.count)
    return [
        {column.strip(): value for column, value in row.items() if isinstance(column, str) and isinstance(value, str)}
        for row in csv.DictReader(lines, delimiter=delimiter)
    ]


def _is_plain(value: object) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _image(written: str, by_name: Mapping[str, str]) -> str | None:
    """Return the name of the image that a cell of a table means."""
    parts = [part for part in written.strip().replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts:
        return None
    stem = image_stem(parts[-1])
    keys = ("/".join(parts), "/".join([*parts[-2:-1], stem]), stem)
    return next((by_name[key] for key in keys if key in by_name), None)


def _label_column(columns: Sequence[str], rows: Sequence[Row]) -> str | None:
    """Return the column of labels: one of a usual name, or a single one of words. Numbers may be widths, or ages."""
    for wanted in _LABELS:
        for column in columns:
            if column.lower().replace(" ", "_") == wanted:
                return column
    only = columns[0] if len(columns) == 1 else None
    has_words = only is not None and any(sign.isalpha() for row in rows for sign in row.get(only, ""))
    return only if has_words else None


def misfit(table: LabelTable, class_count: int | None) -> str:
    """Return why the labels cannot be those of a network of that many classes; nothing where they can."""
    labels = set(table.label_of.values())
    if class_count is None or not labels:
        return ""
    if not _are_numbers(labels):
        return "" if len(labels) == class_count else f"holds {len(labels)} names"
    largest = max(map(int, labels))
    return "" if largest < class_count else f"counts up to {largest}, and indices count from 0"


def label_lines(table: LabelTable, order: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Return the lines of a label list, and the classes' names in the order of their indices.

    Args:
        table: one with labels.
        order: names of the network's classes, where it has them; taken where the table has the same names.

    Returns:
        Names are empty where the labels are indices. Else names that no record orders are sorted.
    """
    labels = set(table.label_of.values())
    if _are_numbers(labels):
        return [f"{image} {int(label)}\n" for image, label in table.label_of.items()], []
    names = list(order) if order is not None and labels <= set(order) else sorted(labels)
    index = {name: position for position, name in enumerate(names)}
    by_class = _folders_can_be(labels, table.label_of)
    return [
        f"{f'{label}/{Path(image).name}' if by_class else image} {index[label]}\n"
        for image, label in table.label_of.items()
    ], names


def are_numbers(table: LabelTable) -> bool:
    """Tell whether the labels are indices of classes."""
    return _are_numbers(table.label_of.values())


def _are_numbers(labels: Iterable[str]) -> bool:
    return all(label.isascii() and label.isdigit() and len(label) < _MOST_DIGITS for label in labels)


def _folders_can_be(labels: Iterable[str], images: Iterable[str]) -> bool:
    """Tell whether a list can say the classes' names, in the place of folders, and still mean the same images."""
    stems = [image_stem(Path(image).name) for image in images]
    return len(set(stems)) == len(stems) and not any(sign in label for label in labels for sign in "/\\\r\n")
