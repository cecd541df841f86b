"""Init: a build file for one's own weights and images, with what can be found out about them filled in."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from pipeline.artefacts import is_written_through, whole_file
from pipeline.config.build_file import load_build_file
from pipeline.config.choices import PreprocessAs
from pipeline.data import class_order, class_tree, containers
from pipeline.data.image_kinds import ANY, count_kinds, describe
from pipeline.data.imagenet import Dataset, imagenet_classes, list_dataset
from pipeline.data.sources import scan
from pipeline.errors import ConfigError, DataError
from pipeline.models.record_values import Numbers
from pipeline.prepare.found_network import FoundNetwork, Wanted, find_network
from pipeline.prepare.listed_tables import Order, make_list
from pipeline.prepare.written_ops import choose_ops
from pipeline.terminal import console

_CALIBRATION = 1000
_SHOWN = 3  # classes in a message


@dataclass(frozen=True)
class Given:
    """The flags of `init`."""

    out: Path
    weights: Path | None  # None: those that the library publishes for `model`, or without images the sample's
    dataset: Path | None  # None: the sample
    evaluation: Path | None = None
    model: str | None = None  # library/name
    size: int | None = None  # px
    checkpoint_key: str | None = None  # which weights of the checkpoint
    suffix: str = ANY  # of the image files
    val_label: Path | None = None  # the labels of `dataset`: lines `name index`
    mean: Numbers | None = None  # of a 0..1 image; None: as found out
    std: Numbers | None = None


def write(given: Given) -> list[str]:
    """Write the build file; return what was found out, a line each.

    Raises:
        PipelineError: the file is there already, no network fits the weights, or the images cannot be listed.
    """
    out = check_out(given.out)
    is_file = not is_written_through(out)
    if given.weights is not None and given.weights.is_dir() and _is_no_data_set(given.dataset):
        what = f"--weights {given.weights}: is a folder, --dataset {given.dataset}: is a file"
        raise ConfigError(f"{what}; give them the other way round")
    network = find_network(Wanted(given.weights, given.model, given.size, given.checkpoint_key))
    images: dict[str, object] = {"path": None}
    notes: list[str] = []
    dataset: Dataset | None = None
    path = given.dataset
    if path is None:
        section = {**network.section, "checkpoint": None}
        section.pop("num_classes", None)
        notes.append("no images: the build makes a sample of images and weights by itself")
    else:
        dataset = _list(given, path, network.classes)
        network = network.with_output(len(dataset.classes) if dataset.samples[0].class_index is not None else None)
        by_hand = given.val_label
        given, listed = _with_table(given, out if is_file else None, dataset, network)
        dataset = dataset if given.val_label == by_hand else _list(given, path, network.classes)
        if given.evaluation is not None and given.evaluation.exists():
            _check_splits(given.evaluation, given.suffix)
        section, images, notes = _of_images(given, path, dataset, network, dict(network.section))
        notes += listed
        if is_file and network.labels is not None:
            notes += _put_in_order(out, images, dataset, network.labels)
    evaluation, measured_on = _of_evaluation(given, out if is_file else None, dataset, network)
    notes += [*measured_on, network.note]
    recipe, said = choose_ops(network, given.mean, given.std)
    if network.recipe is not None and network.recipe.preprocess_as is not PreprocessAs.TORCHVISION:
        images["preprocess_as"] = network.recipe.preprocess_as.value
    stem = (out if is_file else given.weights or Path(str(given.model).replace("/", "_"))).stem
    document = {
        "name": re.sub(r"[^A-Za-z0-9._-]", "_", stem).lstrip("."),
        "frontend": section,
        "dataset": {**images, "process_ops": recipe},
        "evaluation": evaluation,
    }
    with written_to(out, given.out, document) as scratch:
        load_build_file(scratch, extra={"evaluation.path": evaluation["path"]}).check_inputs()
    return [*notes, said]


def _is_no_data_set(path: Path | None) -> bool:
    return path is not None and path.is_file() and not tarfile.is_tarfile(path)


def check_out(given: Path) -> Path:
    """Return where a build file is written: the path, or standard output for `-`.

    Raises:
        ConfigError: the file is there already, or has another suffix.
    """
    out = Path("/dev/stdout") if given == Path("-") else given
    if not is_written_through(out) and out.exists():
        raise ConfigError(f"{given}: is there already; give another name, or remove it")
    if not is_written_through(out) and out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{given}: expected a name that ends in .yaml")
    return out


@contextmanager
def written_to(out: Path, given: Path, document: Mapping[str, object]) -> Iterator[Path]:
    """Yield a scratch file that holds the document as YAML, and becomes `out` if the block ends well.

    Raises:
        ConfigError: it cannot be written; what the block raises, with the name of `out` for that of the scratch file.
    """
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    try:
        with whole_file(out) as scratch:
            scratch.write_text(text, encoding="utf-8")
            try:
                yield scratch
            except ConfigError as err:
                raise ConfigError(str(err).replace(str(scratch), str(given))) from err
    except OSError as err:
        raise ConfigError(f"{given}: cannot be written ({err.strerror}); give another name") from None


def _list(given: Given, path: Path, classes: int | None) -> Dataset:
    """Return the images; those without any label are taken too, since calibration needs none.

    Raises:
        DataError: the images cannot be listed, or lie in class folders of several sets, as train and val.
    """
    with console.silence():  # the second time, what is left out is said
        found = list_dataset(path, given.suffix, given.val_label, class_count=classes, require_labels=False)
    labelled = any(sample.class_index is not None for sample in found.samples) or bool(_splits_of(found))
    return list_dataset(path, given.suffix, given.val_label, class_count=classes, require_labels=labelled)


def _with_table(given: Given, out: Path | None, dataset: Dataset, network: FoundNetwork) -> tuple[Given, list[str]]:
    """Return the flags with a label list of a table that lies with the images, and lines of what was found."""
    assert given.dataset is not None
    if given.val_label is not None:
        return given, []
    target = None if out is None else out.with_suffix(".labels.txt")
    made = make_list(given.dataset, dataset, target, Order(network.labels, network.classes), "--val_label")
    return replace(given, val_label=made.path), list(made.notes)


def _of_evaluation(
    given: Given, out: Path | None, dataset: Dataset | None, network: FoundNetwork
) -> tuple[dict[str, object], list[str]]:
    """Return the section `evaluation:`, with a label list of a table that lies with its images, and what was found.

    Args:
        dataset: of the calibration images, whose classes those of the table are where they are labelled.
    """
    path = given.evaluation
    if path is None or dataset is None or not path.exists():
        return {"path": None if path is None else str(path)}, []
    try:
        found = list_dataset(path, given.suffix, class_count=network.classes, require_labels=False)
    except DataError:  # the build says it
        return {"path": str(path)}, []
    labelled = dataset.samples[0].class_index is not None
    names = tuple(known.id for known in dataset.classes) if labelled else None
    order = Order(names or network.labels, len(dataset.classes) if labelled else network.classes, fixed=labelled)
    target = None if out is None else out.with_suffix(".evaluation.txt")
    made = make_list(path, found, target, order, "--set evaluation.val_label=FILE of build")
    return {"path": str(path), **({} if made.path is None else {"val_label": str(made.path)})}, list(made.notes)


def _check_splits(path: Path, suffix: str) -> None:
    """Raise DataError for evaluation images in class folders of several sets, as train and val."""
    with console.silence():
        found = list_dataset(path, suffix, require_labels=False)
    if _splits_of(found):
        list_dataset(path, suffix)


def _splits_of(dataset: Dataset) -> list[str]:
    return class_tree.find_splits([sample.source for sample in dataset.samples])


def _of_images(
    given: Given, path: Path, dataset: Dataset, network: FoundNetwork, section: dict[str, object]
) -> tuple[dict[str, object], dict[str, object], list[str]]:
    """Return the sections `frontend:` and `dataset:`, and what was found out of the images."""
    images, classes = len(dataset.samples), len(dataset.classes)
    labelled = dataset.samples[0].class_index is not None
    kinds = count_kinds(sample.source.name for sample in dataset.samples)
    what = f"{next(iter(kinds))} images" if len(kinds) == 1 else f"images ({describe(kinds)})"
    if (
        labelled
        and network.classes not in (None, classes)
        and section["type"] not in ("onnx", "paddle", "pytorch", "keras")
    ):
        raise DataError(  # of whole models the build looks at the outputs
            f"{given.weights or given.model}: has {network.classes} classes, but {path} has {_counted(dataset)}; give "
            "the images that it was trained on"
        )
    if labelled:
        notes = [f"{images} {what} of {classes} classes in {path}"]
        if dataset.has_folder_classes and dataset.classes[0].id in {known.id for known in imagenet_classes()}:
            section = {**section, "num_classes": classes}  # without it, folders named so mean all of ImageNet
        order = class_order.note([known.id for known in dataset.classes]) if dataset.has_folder_classes else None
        if order is not None:
            notes.append(f"{order}; build measures which it is")
    else:
        notes = [f"{images} {what} without labels in {path}: enough to calibrate, not to measure accuracy"]
        beside = containers.find_labels([file.name for file in scan(path).files])
        if beside and given.val_label is None:
            notes.append(
                f"{beside[0]} and {len(beside) - 1} others like it are labels of webdataset, which are not read; give "
                "a list, lines 'name index', by --val_label"
            )
        inner = class_tree.find_inner_folder([sample.source for sample in dataset.samples])
        if inner is not None:
            notes.append(
                f"all lie in folders {inner!r}: where those above are the classes, move the images up into them"
            )
        if network.classes is not None:
            section = {**section, "num_classes": network.classes}
    sampler: dict[str, object] = {} if given.suffix == ANY else {"suffix": given.suffix}
    sampler["get_data_num"] = min(_CALIBRATION, images)
    if not labelled:
        sampler["cover_classes"] = False
    labels = {} if given.val_label is None else {"val_label": str(given.val_label)}
    return section, {"path": str(path), **labels, "sampler": sampler}, notes


def _counted(dataset: Dataset) -> str:
    names = [known.id for known in dataset.classes]
    shown = f" ({', '.join(names)})" if len(names) <= _SHOWN else ""
    return f"{len(names)}{shown}"


def _put_in_order(out: Path, images: dict[str, object], dataset: Dataset, labels: Sequence[str]) -> list[str]:
    """Write a label list where the model's file names the class folders in another order than theirs.

    The list is named in the section `images`.
    """
    if not dataset.has_folder_classes or "val_label" in images:
        return []
    numbers = {_plain(label): index for index, label in enumerate(labels)}
    folders = [known.id for known in dataset.classes]
    if len(numbers) != len(labels) or sorted(map(_plain, folders)) != sorted(numbers):
        return []
    order = [numbers[_plain(folder)] for folder in folders]
    if order == list(range(len(order))):
        return []
    path = out.with_suffix(".labels.txt")
    lines = [
        f"{folders[sample.class_index]}/{Path(sample.source.name).name} {order[sample.class_index]}\n"
        for sample in dataset.samples
        if sample.class_index is not None
    ]
    with whole_file(path) as scratch:
        scratch.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")  # as names of files may be
    images["val_label"] = str(path)
    return [f"the model's own order of the classes ({', '.join(labels[:3])}, ...) is not that of the folders: {path}"]


def _plain(label: str) -> str:
    """Return a class's name as folders have it: id2label may list other words for it after commas."""
    return re.sub(r"[^a-z0-9]+", "_", label.partition(",")[0].strip().lower())
