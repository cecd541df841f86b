"""The label list that lies beside a flat folder of images, kept beside the npz files that are made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.artefacts import whole_file
from pipeline.data.imagenet import find_own_list
from pipeline.data.labels import read_label_list
from pipeline.data.sources import ImageSource
from pipeline.data.storage import Location, Url
from pipeline.errors import DataError

LIST = "val_label.txt"  # in each folder of npz files, lines `name index`


@dataclass(frozen=True)
class Listed:
    """What a list says of the images below a folder or tar."""

    file: Path | ImageSource
    index_of: Mapping[str, int]  # class index by `<folder>/<name>` of each image that it names


def find_listed(images: Location, suffix: str) -> Listed | None:
    """Return the labels of a flat data set by the list in or beside it; None where there is no list, or class folders.

    Raises:
        DataError: the list cannot be understood.
    """
    found = find_own_list(images, suffix)
    if found is None:
        return None
    file, samples = found
    labels = read_label_list(file)
    index_of = {}
    for sample in samples:
        index = labels.get(sample.key, labels.get(sample.name))
        if index is not None:
            index_of[sample.key] = index
    return Listed(file, index_of)


def keep(listed: Listed, target: Location) -> None:
    """Write the labels into the folders of npz files below `target`, where `read_kept` finds them.

    Raises:
        DataError: a folder cannot be written.
    """
    by_folder: dict[str, list[str]] = {}
    for key, index in listed.index_of.items():
        folder, _, name = key.rpartition("/")
        by_folder.setdefault(folder, []).append(f"{name} {index}\n")
    for folder, lines in by_folder.items():
        content = "".join(lines).encode("utf-8", "surrogateescape")
        place = target / folder / LIST
        if isinstance(place, Url):
            place.write_bytes(content)
            continue
        try:
            with whole_file(place) as scratch:
                scratch.write_bytes(content)
        except OSError as err:
            raise DataError(f"{place}: cannot be written ({err.strerror}); give another --target_path") from err


def read_kept(npz_paths: Iterable[Location]) -> dict[str, int]:
    """Return class indices by `<folder>/<name>`, of the lists that `keep` wrote beside npz files."""
    found: dict[str, int] = {}
    for folder in dict.fromkeys(path.parent for path in npz_paths):
        place = folder / LIST
        if place.is_file():
            labels = read_label_list(ImageSource(folder, LIST) if isinstance(folder, Url) else folder / LIST)
            found.update({f"{folder.name}/{name.rpartition('/')[2]}": index for name, index in labels.items()})
    return found
