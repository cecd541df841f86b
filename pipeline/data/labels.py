"""Classes, label lists, and the ground truth of evaluation samples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from pipeline.config.documents import find_data_file
from pipeline.data.image_kinds import IMAGE_SUFFIXES
from pipeline.data.list_files import image_stem, read_lines
from pipeline.data.sources import ImageSource
from pipeline.errors import DataError

_DATA_PREP = "data_prep"
_VALIDATION_STEM = re.compile(r"ILSVRC2012_val_(\d{8})", re.ASCII)


@dataclass(frozen=True)
class ClassInfo:
    """A class of a data set; its position in the tuple of classes is the network's output index."""

    id: str  # wnid or folder name, unique
    name: str  # for people; two ImageNet classes share "crane"


@dataclass(frozen=True)
class LabelLine:
    """One line of a label list."""

    line: int  # counts from 1
    name: str  # as written
    index: int

    @property
    def stem(self) -> str:
        return image_stem(self.name)

    @property
    def folder(self) -> str:
        """The name of the folder that the line gives the image, or nothing."""
        return PurePosixPath(self.name).parent.name

    @property
    def key(self) -> str:
        """The stem with its folder, where one is written."""
        return f"{self.folder}/{self.stem}" if self.folder else self.stem


@lru_cache(maxsize=1)
def imagenet_classes() -> tuple[ClassInfo, ...]:
    """Return the 1000 classes of ILSVRC2012 in the order that all published networks use."""
    ids, names = _shipped_lines("imagenet_wnids.txt"), _shipped_lines("imagenet.txt")
    return tuple(ClassInfo(wnid, name) for wnid, name in zip(ids, names, strict=True))


def classes_of(ids: Sequence[str]) -> tuple[ClassInfo, ...]:
    """Return classes in the order of `ids`; an ImageNet wnid has a name, another id is its own name."""
    names = {known.id: known.name for known in imagenet_classes()}
    return tuple(ClassInfo(class_id, names.get(class_id, class_id)) for class_id in ids)


def usual_classes(count: int) -> tuple[ClassInfo, ...]:
    """Return the classes of a network whose data set is not known: ImageNet's where it has 1000, else numbers."""
    known = imagenet_classes()
    return known if count == len(known) else classes_of([str(index) for index in range(count)])


def write_classes(path: Path, classes: Sequence[ClassInfo]) -> None:
    """Write a line `id<TAB>name` for each class, in index order.

    Raises:
        DataError: an id holds a tab or a line end.
    """
    for known in classes:
        if any(sign in known.id + known.name for sign in "\t\r\n"):
            raise DataError(f"class {known.id!r}: its name holds a tab or a line end; rename its folder")
    lines = "".join(f"{known.id}\t{known.name}\n" for known in classes)
    path.write_bytes(lines.encode("utf-8", errors="surrogateescape"))  # folder names may be of any bytes


def read_classes(path: Path) -> tuple[ClassInfo, ...]:
    """Return the classes that `write_classes` wrote.

    Raises:
        DataError: the file is not one that `write_classes` wrote.
    """
    lines = path.read_bytes().decode("utf-8", errors="surrogateescape").split("\n")
    fields = [line.split("\t", 1) for line in lines[:-1]]
    if not fields or lines[-1] or any(len(pair) != 2 for pair in fields):
        raise DataError(f"{path}: expected lines 'class<TAB>name'; it was changed, build again")
    return tuple(ClassInfo(*pair) for pair in fields)


@lru_cache(maxsize=1)
def _validation_indices() -> tuple[int, ...]:
    return tuple(int(line) for line in _shipped_lines("imagenet_val_classes.txt"))


def validation_label(stem: str) -> int | None:
    """Return the class index of an official validation image, such as ILSVRC2012_val_00000001; None for other names."""
    match = _VALIDATION_STEM.fullmatch(stem)
    position = int(match[1]) if match else 0
    return _validation_indices()[position - 1] if 1 <= position <= len(_validation_indices()) else None


def _shipped_lines(name: str) -> list[str]:
    return find_data_file(_DATA_PREP, name).read_text(encoding="utf-8").splitlines()


def read_label_lines(path: Path | ImageSource, class_count: int | None = None) -> dict[str, LabelLine]:
    """Return the lines of a label list by image; see `read_label_list`."""
    by_key: dict[str, LabelLine] = {}
    for label in _parse_label_lines(path):
        if class_count is not None:
            _check_index(path, label, class_count)
        _check_same_index(path, by_key.setdefault(label.key, label), label)
    if not by_key:
        raise DataError(f"{path}: holds no labels, expected lines 'name index'")
    by_stem: dict[str, LabelLine] = {}
    ambiguous: set[str] = set()
    for label in by_key.values():
        first = by_stem.setdefault(label.stem, label)
        if first.index == label.index:
            continue
        ambiguous.add(label.stem)
        if label.stem in by_key:  # a name without folder may mean any image of that stem
            _check_same_index(path, first, label)
    return {label.key if label.stem in ambiguous else label.stem: label for label in by_key.values()}


def _check_index(path: Path | ImageSource, label: LabelLine, class_count: int) -> None:
    if label.index >= class_count:
        raise DataError(
            f"{path}:{label.line}: class index {label.index}, expected 0 to {class_count - 1}"
            f" ({class_count} classes); indices count from 0"
        )


def classes_of_list(
    path: Path | ImageSource, lines: Mapping[str, LabelLine], class_count: int | None = None
) -> tuple[ClassInfo, ...]:
    """Return the classes that a label list refers to.

    They are ImageNet's where `class_count` or the highest index indicates it, where the images have ImageNet's names,
    or where the list has so few of the indices that it can only be a part of ImageNet; else those from 0 to the highest
    index, named after the folders in the list where each class has one folder, else by number.

    Args:
        path, lines: argument and result of `read_label_lines`.
        class_count: of the network, where it is known.

    Raises:
        DataError: an index is beyond the classes.
    """
    indices = {label.index for label in lines.values()}
    imagenet = imagenet_classes()
    count = class_count or max(indices) + 1
    is_part = class_count is None and (2 * len(indices) < count or _names_imagenet(lines.values()))
    if count == len(imagenet) or is_part:
        for label in sorted(lines.values(), key=lambda label: label.line):
            _check_index(path, label, len(imagenet))
        return imagenet
    for label in sorted(lines.values(), key=lambda label: label.line):
        _check_index(path, label, count)
    folders = _folders_of_classes(lines.values())
    # Not just the number: a folder of that name may hold another class, where folders count from 1.
    known = (ClassInfo(f"class_{index}", str(index)) for index in range(count))
    return tuple(
        classes_of([folders[each]])[0] if each in folders else known_class for each, known_class in enumerate(known)
    )


def _names_imagenet(labels: Iterable[LabelLine]) -> bool:
    """Tell whether every image is ImageNet's by its name: an official name, or in the folder of the right wnid."""
    ids = [known.id for known in imagenet_classes()]
    return all(
        validation_label(label.stem) == label.index or (label.index < len(ids) and label.folder == ids[label.index])
        for label in labels
    )


def _folders_of_classes(labels: Iterable[LabelLine]) -> dict[int, str]:
    """Return the folder of each class, if classes and folders correspond one to one and every image has a folder."""
    pairs = {(label.index, label.folder) for label in labels}
    indices, folders = {index for index, _ in pairs}, {folder for _, folder in pairs}
    return dict(pairs) if len(pairs) == len(indices) == len(folders) > 1 and "" not in folders else {}


def _check_same_index(path: Path | ImageSource, first: LabelLine, second: LabelLine) -> None:
    if first.index != second.index:
        raise DataError(
            f"{path}:{second.line}: {second.stem} has class index {second.index}, but line {first.line} says"
            f" {first.index}; remove one of them"
        )


def read_label_list(path: Path | ImageSource, class_count: int | None = None) -> dict[str, int]:
    """Return the class index of each image by its stem, from lines `name index`.

    Images of one stem and several classes are distinguished by their folders, under the key `<folder>/<stem>`.

    Args:
        path: the list; a name may carry a folder and an image suffix, and stand in quotes; between name and index is
            space, a comma or a semicolon. Blank lines, and lines that begin with `# `, are ignored. Or the devkit's
            ILSVRC2012_validation_ground_truth.txt, which has the devkit's class numbers and no names.
        class_count: indices must be below it; None leaves that to the caller.

    Raises:
        DataError: missing, empty, a line that cannot be parsed, an index out of range, or two indices for one image.
    """
    return {stem: label.index for stem, label in read_label_lines(path, class_count).items()}


def _parse_label_lines(path: Path | ImageSource) -> Iterator[LabelLine]:
    lines = read_lines(path)
    if _is_number(lines[0].strip()):
        yield from _devkit_lines(path, lines)
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("# "):
            continue
        fields = line.rsplit(None, 1)
        if len(fields) != 2 or not _is_number(fields[1]):
            sign = next((sign for sign in ";," if sign in line), "\t")
            fields = [field.strip().strip('"') for field in line.rsplit(sign, 1)]
        if len(fields) != 2 or not _is_number(fields[1]):
            words = re.split(r"[\s,;]+", line.strip().strip('"'))
            if number == 1 and any(map(str.strip, lines[1:])) and not any(map(_is_image_or_number, words)):
                continue  # the header of a table
            raise DataError(f"{path}:{number}: expected 'name index', found {line[:80]!r}{_advice(words)}")
        name = fields[0].strip().rstrip(",;").strip('"').replace("\\", "/")  # as Windows writes folders
        yield LabelLine(number, name, int(fields[1]))


def _is_image_or_number(word: str) -> bool:
    return PurePosixPath(word.strip("'\"")).suffix.lower() in IMAGE_SUFFIXES or _is_number(word.strip("-"))


def _advice(words: Sequence[str]) -> str:
    """Return what to do with a line of other words than a name and an index, to complete a message."""
    if words[-1].isidentifier():
        return f": {words[-1]!r} is no number; number the classes from 0, in the order of the network's outputs"
    return "; the name comes first" if len(words) == 2 and _is_number(words[0]) else ""


def _devkit_lines(path: Path | ImageSource, lines: Sequence[str]) -> Iterator[LabelLine]:
    """Read the devkit's ILSVRC2012_validation_ground_truth.txt: line n is the class of validation image n.

    The devkit numbers classes in its own order, which its meta.mat defines; here the order follows from the known
    labels of the same images.
    """
    numbers = [line.strip() for line in lines if line.strip()]
    official = _validation_indices()
    pairs = set(zip(numbers, official, strict=False))
    if len(numbers) != len(official) or not len(pairs) == len(set(numbers)) == len(set(official)):
        raise DataError(
            f"{path}:1: expected 'name index', found {lines[0][:80]!r}; numbers alone are understood only in the whole"
            " ILSVRC2012_validation_ground_truth.txt"
        )
    for number, index in enumerate(official, start=1):
        yield LabelLine(number, f"ILSVRC2012_val_{number:08d}", index)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def is_imagenet(classes: Sequence[ClassInfo]) -> bool:
    return tuple(known.id for known in classes) == tuple(known.id for known in imagenet_classes())
