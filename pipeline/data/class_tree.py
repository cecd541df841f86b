"""Whether the folders of a data set are classes, which ones, and what a label list beside them is called."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.choices import ClassOrder
from pipeline.data.class_order import arrange
from pipeline.data.labels import ClassInfo, classes_of, imagenet_classes
from pipeline.data.sources import ImageSource, Listing
from pipeline.errors import DataError

# How a user gives labels: keys of the build file, and the flag of the commands that have one.
LABELS_KEY = "dataset.val_label or evaluation.val_label (--val_label of calibset and init)"
_SPLITS = frozenset({"train", "val", "test"})
LIST_NAMES = ("val_label.txt", "val_list.txt")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")  # of tables of labels, which `init` makes lists of


def folder_of(name: str) -> str:
    """Return the name of a file or folder below the root without its last part."""
    return name.rpartition("/")[0]


def find_class_tree(
    listing: Listing, images: Sequence[ImageSource], classes: Sequence[ClassInfo] | None, require_labels: bool
) -> str | None:
    """Return the folder below the root whose folders are classes ("" for the root); None for a flat data set.

    Raises:
        DataError: labels are required and the layout is neither.
    """
    folders = sorted({folder_of(image.name) for image in images})
    if len(folders) == 1:
        return folder_of(folders[0]) if _is_class_folder(listing, folders[0], classes) else None
    bases = {folder_of(folder) for folder in folders}
    names = {folder.rpartition("/")[2] for folder in folders}
    if "" not in folders and len(bases) == 1 and not names <= _SPLITS:
        return bases.pop()
    if not require_labels:
        return None
    splits = find_splits(images) or sorted({folder.split("/")[0] for folder in folders} & _SPLITS)
    if len(splits) > 1:
        ways = " or ".join(f"{listing.root}/{split}" for split in splits)
        raise DataError(f"{listing.root}: holds {' and '.join(splits)}; give one of them: {ways}")
    flat = [image for image in images if folder_of(image.name) in ("", *bases)]
    first = flat[0].name if flat else images[0].name
    raise DataError(
        f"{listing.root}: {len(flat) or len(images)} images lie outside the class folders (first: {first});"
        " move them into class folders (data_prep/valprep.sh does it for ILSVRC2012_img_val),"
        f" or give a list of all labels by {LABELS_KEY}"
    )


def find_splits(images: Sequence[ImageSource]) -> list[str]:
    """Return the folders that each hold folders of the same classes, as train and val do, sorted; none or several."""
    classes = _folders_by_base(images)
    splits = sorted(base for base, names in classes.items() if base and len(names) > 1)
    shared = set.intersection(*(classes[base] for base in splits)) if splits else set()
    return splits if len(splits) > 1 and 2 * len(shared) > min(len(classes[base]) for base in splits) else []


def find_inner_folder(images: Sequence[ImageSource]) -> str | None:
    """Return the one name of all folders with images, which lie below others, as `images`; None of any other layout."""
    classes = _folders_by_base(images)
    inner = set().union(*classes.values())
    return inner.pop() if len(classes) > 1 and "" not in classes and len(inner) == 1 else None


def _folders_by_base(images: Sequence[ImageSource]) -> dict[str, set[str]]:
    """Return the names of the folders with images, by the folder below the root that they lie in."""
    found: dict[str, set[str]] = {}
    for folder in {folder_of(image.name) for image in images}:
        found.setdefault(folder_of(folder), set()).add(folder.rpartition("/")[2])
    return found


def _is_class_folder(listing: Listing, folder: str, classes: Sequence[ClassInfo] | None) -> bool:
    """Tell whether the only folder with images is a class, not the folder of a flat data set."""
    name = folder.rpartition("/")[2]
    if not name:
        return False
    if name in {known.id for known in classes or imagenet_classes()}:
        return True
    # A folder beside a label list is flat, and so is the one folder that a tar of a flat folder begins with.
    return name not in _SPLITS and not listing.in_tar and not set(list_names(name)) & {f.name for f in listing.files}


def list_tree_classes(
    listing: Listing,
    images: Sequence[ImageSource],
    base: str,
    class_order: ClassOrder | None,
    class_count: int | None = None,
) -> tuple[ClassInfo, ...]:
    """Return ImageNet's classes if all folders with images are its wnids, else the folder names in their order.

    Networks that were trained on some classes of ImageNet alone, as of Imagenette, have as many outputs as there are
    folders: those are the classes then.

    Args:
        class_count: of the network, if known.

    Raises:
        DataError: some are ImageNet's and others are not wnids, so the classes are ambiguous; or the order is numeric,
            and the names have no numbers.
    """
    used = {image.folder for image in images}
    imagenet = {known.id for known in imagenet_classes()}
    names = [name.rpartition("/")[2] for name in listing.folders if folder_of(name) == base]
    if used <= imagenet and (class_count in (None, len(imagenet)) or class_count != len(names)):
        return imagenet_classes()
    strange = sorted(name for name in used - imagenet if not _looks_like_wnid(name))
    if used & imagenet and strange:
        raise DataError(
            f"{listing.root}: {len(used & imagenet)} folders are ImageNet classes, {len(strange)} are not"
            f" (first: {strange[0]}); move those away"
        )
    return classes_of(arrange(names, class_order))


def _looks_like_wnid(name: str) -> bool:
    return len(name) == 9 and name[0] == "n" and name[1:].isdigit()


def list_names(folder: str) -> tuple[str, ...]:
    """Return the names a label list of this folder may have, the most specific first."""
    return (f"{folder}_label.txt", f"{folder}_list.txt", *LIST_NAMES)
