"""Which class each sample of an evaluation is of, by the key that joins its npz file, its result and its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.data.labels import ClassInfo, is_imagenet, read_label_list, validation_label
from pipeline.data.storage import Location
from pipeline.errors import DataError


def sample_key(npz_path: Location) -> str:
    """Return the name that joins a sample's npz, result and ground truth: `<parent folder>/<stem>`."""
    return f"{npz_path.parent.name}/{npz_path.stem}"


def find_ground_truth(
    npz_paths: Sequence[Location],
    classes: Sequence[ClassInfo],
    val_label: Path | None = None,
    known: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Return the class index of each sample by its key (`sample_key`), in the order given.

    The first that knows a sample decides: the list `val_label`; the class folder that the npz lies in; `known`, the
    list of the build, by key or by stem; for ImageNet's classes, the official labels of ILSVRC2012_val_* images.

    Raises:
        DataError: two samples share a key, a list is wrong, or a sample has no ground truth.
    """
    listed = {} if val_label is None else read_label_list(val_label, len(classes))
    by_folder = {known_class.id: index for index, known_class in enumerate(classes)}
    known = {} if known is None else known
    official = is_imagenet(classes)
    truth: dict[str, int] = {}
    missing: list[Location] = []
    for path in npz_paths:
        key, stem = sample_key(path), path.stem
        if key in truth:
            raise DataError(f"{path}: a second sample {key}; samples are joined by folder and name, rename one of them")
        found = (listed.get(key), listed.get(stem), by_folder.get(path.parent.name), known.get(key), known.get(stem))
        index = next((index for index in found if index is not None), None)
        if index is None and official:
            index = validation_label(stem)
        if index is None:
            missing.append(path)
        elif index >= len(classes):
            raise DataError(f"{key}: class index {index}, expected 0 to {len(classes) - 1} ({len(classes)} classes)")
        else:
            truth[key] = index
    if missing:
        raise DataError(
            f"{len(missing)} of {len(npz_paths)} samples have no ground truth (first: {missing[0]});"
            " give their labels with --val_label FILE, lines 'name index'"
        )
    return truth
