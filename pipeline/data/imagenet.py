"""Data sets of labelled images: folders or tars in ImageNet's layouts, their classes and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.choices import ClassOrder
from pipeline.data import containers
from pipeline.data.class_tree import (
    LABELS_KEY,
    LIST_NAMES,
    TABLE_SUFFIXES,
    find_class_tree,
    folder_of,
    list_names,
    list_tree_classes,
)
from pipeline.data.image_kinds import ANY, count_kinds, describe, list_spellings
from pipeline.data.labels import (
    ClassInfo,
    LabelLine,
    classes_of,
    classes_of_list,
    imagenet_classes,
    is_imagenet,
    read_label_lines,
    read_label_list,
    usual_classes,
    validation_label,
)
from pipeline.data.list_files import image_stem
from pipeline.data.sources import ImageSource, Listing, scan
from pipeline.data.storage import Location
from pipeline.errors import DataError
from pipeline.terminal import console

__all__ = [
    "ClassInfo",
    "Dataset",
    "ImageSource",
    "Sample",
    "imagenet_classes",
    "list_dataset",
    "list_images",
    "make_sample",
    "read_label_list",
]

# How a user gives it: by a key of the build file, and flags of the commands that have one.
_SUFFIX_KEY = "dataset.sampler.suffix (--suffix of calibset, image2npz and init)"
_SHOWN = 5  # class folders


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a data set."""

    name: str  # file name without suffix; label lists join by it
    folder: str  # name of the folder that holds it: the wnid in a class tree
    source: ImageSource
    class_index: int | None  # None: no label is known

    @property
    def key(self) -> str:
        """`<folder>/<name>`: where its npz lies below the target, and how its result is joined."""
        return f"{self.folder}/{self.name}"


@dataclass(frozen=True)
class Dataset:
    """The images of a folder or tar, sorted by their names below it."""

    path: Location  # absolute
    samples: tuple[Sample, ...]
    classes: tuple[ClassInfo, ...]
    has_folder_classes: bool = False  # the classes are the class folders, in the order that was asked for


def list_dataset(
    path: Path,
    suffix: str = ANY,
    val_label: Path | None = None,
    class_ids: Sequence[str] | None = None,
    *,
    class_count: int | None = None,
    require_labels: bool = True,
    class_order: ClassOrder | None = None,
) -> Dataset:
    """List the images below `path` with their labels.

    Args:
        path: a tree of class folders, a flat folder with a label list, or a tar of either.
        suffix: of the image files, in any case: JPEG takes .jpg and .jpeg, any every kind. What is left out is printed.
        val_label: label list that overrides folders; where its classes are not ImageNet's, only the images in it are
            taken, and the number of others is printed. A flat folder without it looks for `<folder>_list.txt`,
            `val_label.txt` and `val_list.txt` (`_label` and `_list` of either name) inside and beside itself.
        class_ids: the classes of the network in its order. Without them: ImageNet's where all class folders are its
            wnids, else the folder names in their order; for a list, those of `labels.classes_of_list`.
        class_count: number of the network's classes, if known; used where a list has the labels, and where folders are
            wnids: as many of them as the network has classes are its classes, as of Imagenette.
        require_labels: False keeps images whose label is not known, with class_index None.
        class_order: of the folder names, where they are the classes; None: as text.

    Raises:
        DataError: no images, images without labels, labels without images, a layout or list that cannot be understood.
    """
    listing = scan(path)
    images = _select_images(listing, suffix)
    classes = None if class_ids is None else classes_of(class_ids)
    tree = None if val_label is not None else find_class_tree(listing, images, classes, require_labels)
    if tree is not None:
        if classes is None:
            own = list_tree_classes(listing, images, tree, class_order, class_count)
            return _from_tree(listing, images, own, require_labels, has_folder_classes=own != imagenet_classes())
        return _from_tree(listing, images, classes, require_labels, has_folder_classes=False)
    labels_file = val_label if val_label is not None else _find_label_list(listing, images)
    lines = None if labels_file is None else read_label_lines(labels_file, None if classes is None else len(classes))
    if classes is None and labels_file is not None and lines is not None:
        classes = classes_of_list(labels_file, lines, class_count)
    classes = classes or (usual_classes(class_count) if class_count else imagenet_classes())
    if val_label is not None and lines is not None and not is_imagenet(classes):
        images = _select_listed(listing, images, val_label, lines)
    return _from_list(listing, images, labels_file, lines or {}, classes, require_labels)


def list_images(path: Location, suffix: str = ANY) -> tuple[Sample, ...]:
    """List the images below `path`, in any layout, without looking at labels.

    Raises:
        DataError: no images of that suffix, or a path that cannot be listed.
    """
    return tuple(make_sample(image, None) for image in _select_images(scan(path), suffix))


def find_own_list(path: Location, suffix: str) -> tuple[Path | ImageSource, tuple[Sample, ...]] | None:
    """Return the label list that lies in or beside a flat data set, and its images; None for any other layout."""
    listing = scan(path)
    with console.silence():  # who lists the images says what is left out
        images = _select_images(listing, suffix)
    if find_class_tree(listing, images, None, require_labels=False) is not None:
        return None
    file = _find_label_list(listing, images)
    return None if file is None else (file, tuple(make_sample(image, None) for image in images))


def _select_images(listing: Listing, suffix: str) -> list[ImageSource]:
    endings = list_spellings(suffix)
    deeper = _describe_deeper(listing)
    if deeper:
        console.warning(f"note: {listing.root}: {deeper}")
    images = [file for file in listing.files if file.name.lower().endswith(endings)]
    others = count_kinds(file.name for file in listing.files) - count_kinds(image.name for image in images)
    takes_any = suffix.lower() == ANY
    if not images:
        readable = any(f".{kind.lower()}" in list_spellings(ANY) for kind in others)
        held = containers.describe_first(file.name for file in listing.files)
        hint = f"set {_SUFFIX_KEY} to any" if readable else deeper or held or "give the folder of the images"
        wanted = "" if takes_any else f" {' or '.join(endings)}"
        found = f", found {describe(others)}" if others else ""
        raise DataError(f"{listing.root}: no{wanted} images{found}; {hint}")
    if others:
        way = "convert them to take them" if takes_any else f"{_SUFFIX_KEY} any takes every kind"
        console.warning(f"note: {listing.root}: {len(images)} images, left out {describe(others)} images; {way}")
    return images


def _describe_deeper(listing: Listing) -> str:
    """Return a line on folders that were not looked into; "" where there are none."""
    if not listing.deeper:
        return ""
    return (
        f"{len(listing.deeper)} folders lie too deep and are not looked into (first: {listing.deeper[0]}); give a "
        "folder further down, or move their images up"
    )


def _select_listed(
    listing: Listing, images: list[ImageSource], labels_file: Path, lines: Mapping[str, LabelLine]
) -> list[ImageSource]:
    """Return the images that a list names: PaddleClas's train_list.txt and val_list.txt share one folder."""
    listed = [image for image in images if _line_of(image, lines) is not None]
    if not listed:
        first = min(lines.values(), key=lambda label: label.line)
        raise DataError(
            f"{labels_file}: names none of the {len(images)} images in {listing.root}: {first.name} is its first, and "
            f"{images[0].name} the folder's; give the list of these images"
        )
    if len(listed) < len(images):
        console.warning(
            f"note: {listing.root}: {len(listed)} images of {labels_file}, {len(images) - len(listed)} others left out"
        )
    return listed


def _line_of(image: ImageSource, lines: Mapping[str, LabelLine]) -> LabelLine | None:
    stem = image_stem(image.name)
    return lines.get(f"{image.folder}/{stem}") or lines.get(stem)


def _from_tree(
    listing: Listing,
    images: Sequence[ImageSource],
    classes: tuple[ClassInfo, ...],
    require_labels: bool,
    *,
    has_folder_classes: bool,
) -> Dataset:
    index_of = {known.id: index for index, known in enumerate(classes)}
    samples = [make_sample(image, index_of.get(image.folder)) for image in images]
    unknown = sorted({sample.folder for sample in samples} - index_of.keys())
    if unknown and require_labels:
        first = ", ".join(unknown[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
        raise DataError(
            f"{listing.root}: {len(unknown)} folders with images are none of the {len(classes)} classes"
            f" ({first}); move them away, or give labels by {LABELS_KEY}"
        )
    return Dataset(listing.root, tuple(samples), classes, has_folder_classes)


def make_sample(source: ImageSource, class_index: int | None) -> Sample:
    return Sample(image_stem(source.name), source.folder, source, class_index)


def _from_list(
    listing: Listing,
    images: Sequence[ImageSource],
    labels_file: Path | ImageSource | None,
    lines: Mapping[str, LabelLine],
    classes: tuple[ClassInfo, ...],
    require_labels: bool,
) -> Dataset:
    """Label images by a list; without one, by the official labels if they are ILSVRC2012_val_* images."""
    official = labels_file is None and is_imagenet(classes)
    samples = []
    for image in images:
        line = _line_of(image, lines)
        index = line.index if line is not None else validation_label(image_stem(image.name)) if official else None
        samples.append(make_sample(image, index))
    if require_labels:
        _check_all_labelled(listing, samples, labels_file)
        _check_all_present(listing, samples, labels_file, lines)
    return Dataset(listing.root, tuple(samples), classes)


def _check_all_labelled(listing: Listing, samples: Sequence[Sample], labels_file: Path | ImageSource | None) -> None:
    unlabelled = [sample for sample in samples if sample.class_index is None]
    if not unlabelled:
        return
    first = f"{len(unlabelled)} of {len(samples)} images have no label (first: {unlabelled[0].source.name})"
    if labels_file is None:
        raise DataError(
            f"{listing.root}: {first}: neither class folders nor a list {' or '.join(LIST_NAMES)} here or in"
            f" {listing.root.parent}; give a list of lines 'name index' by {LABELS_KEY}{_of_table(listing)}"
        )
    raise DataError(f"{listing.root}: {first} in {labels_file}; add lines 'name index', or remove the images")


def _of_table(listing: Listing) -> str:
    """Return what to do with a table of labels."""
    table = next((file.name for file in listing.files if file.name.lower().endswith(TABLE_SUFFIXES)), None)
    return "" if table is None else f"; of {table}, init --dataset makes one"


def _check_all_present(
    listing: Listing,
    samples: Sequence[Sample],
    labels_file: Path | ImageSource | None,
    lines: Mapping[str, LabelLine],
) -> None:
    present = {sample.name for sample in samples} | {sample.key for sample in samples}
    absent = [line for image, line in lines.items() if image not in present]
    if absent:
        raise DataError(
            f"{labels_file}:{absent[0].line}: {absent[0].name} is not in {listing.root}"
            f" ({len(absent)} of {len(lines)} listed images are missing);"
            f" fetch them, or give a list of the images that are there by {LABELS_KEY}"
        )


def _find_label_list(listing: Listing, images: Sequence[ImageSource]) -> Path | ImageSource | None:
    """Return the label list of a flat data set: in its folder, the folder above, or beside the root."""
    folder = folder_of(images[0].name)
    names = list_names(images[0].folder)
    within = {file.name: file for file in listing.files if file.name.endswith(".txt")}
    for place in (f"{folder}/" if folder else "", f"{folder_of(folder)}/" if folder_of(folder) else ""):
        found = next((within[place + name] for name in names if place + name in within), None)
        if found is not None:
            return found
    if not isinstance(listing.root, Path):
        return None
    beside = (listing.root.parent / name for name in names)
    return next((path for path in beside if path.is_file()), None)
