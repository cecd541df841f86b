"""Choose the calibration images: any N, every class present."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.build_config import BuildConfig
from pipeline.config.choices import ClassOrder, Precision
from pipeline.data import class_order, inspection
from pipeline.data.bit_depth import describe_dark
from pipeline.data.calibration_list import write_calibration_list
from pipeline.data.imagenet import Dataset, Sample, list_dataset
from pipeline.data.inspection import Inspected
from pipeline.data.labels import ClassInfo, write_classes
from pipeline.data.sample import class_folder, sample_class_names
from pipeline.data.sources import ImageSource
from pipeline.errors import DataError
from pipeline.host.hardware import available_cores
from pipeline.stages.artefact_names import CALIBRATION, CLASSES, IMAGES, write_notes
from pipeline.stages.settings import ImageTree, InputFile, unkeyed

_SAMPLE_SPLIT = "calibration"


@dataclass(frozen=True, kw_only=True)
class Settings:
    images: ImageTree | None  # None: those of the sample
    labels: InputFile | None
    suffix: str
    count: int
    seed: int
    covers_classes: bool  # refuse a choice without an image of every class
    takes_fewer: bool  # all images, where there are fewer than `count`
    num_classes: int | None
    class_order: ClassOrder | None
    skip_bad: bool  # take others for images that cannot be decoded
    cores: int = unkeyed()  # they divide the images among them


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on."""
    dataset, sampler = cfg.dataset, cfg.dataset.sampler
    calibrates = cfg.backend.dtype is Precision.INT8
    return Settings(
        images=None if dataset.path is None else ImageTree(dataset.path),
        labels=None if dataset.val_label is None else InputFile(dataset.val_label),
        suffix=sampler.suffix,
        count=sampler.get_data_num,
        seed=sampler.seed,
        covers_classes=sampler.cover_classes and calibrates,
        takes_fewer=not calibrates,
        num_classes=cfg.frontend.num_classes,
        class_order=dataset.class_order,
        skip_bad=dataset.skip_bad,
        cores=available_cores(),
    )


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the list of images, the digest of each, and the classes of the data set.

    Raises:
        DataError: the data set lacks images, or some that were chosen cannot be decoded.
    """
    notes = []
    if settings.images is None:
        names = sample_class_names()
        folders = [class_folder(index) for index in range(len(names))]
        dataset = list_dataset(inputs["sample"] / _SAMPLE_SPLIT, class_ids=folders)
        classes = tuple(ClassInfo(folder, name) for folder, name in zip(folders, names, strict=True))
    else:
        dataset = list_dataset(
            settings.images.path,
            settings.suffix,
            None if settings.labels is None else settings.labels.path,
            class_count=settings.num_classes,
            require_labels=settings.covers_classes,
            class_order=settings.class_order,
        )
        classes = dataset.classes
        notes = _notes_of_order(dataset, settings.class_order)
    chosen, inspected = _choose_sound(settings, dataset)
    write_calibration_list(chosen, out / CALIBRATION, settings.seed)
    digests = (f"{inspected[sample.source].sha256}  {sample.source.name}\n" for sample in chosen)
    (out / IMAGES).write_text("".join(digests), encoding="utf-8", errors="surrogateescape")
    write_classes(out / CLASSES, classes)
    write_notes(out, [*notes, *_notes_of_faults(inspected), *_notes_of_depth(inspected)])


def _choose_sound(settings: Settings, dataset: Dataset) -> tuple[list[Sample], dict[ImageSource, Inspected]]:
    """Return images that decode, and what was found of all that were looked at.

    This program wrote those of the embedded sample just before: only their digests are computed.
    """
    inspected: dict[ImageSource, Inspected] = {}
    while True:
        bad = {source: each.fault for source, each in inspected.items() if each.fault}
        good = len(dataset.samples) - len(bad)
        count = min(settings.count, good) if settings.takes_fewer and good else settings.count
        chosen = choose(dataset, count, settings.seed, settings.covers_classes, without=bad)
        fresh = [sample.source for sample in chosen if sample.source not in inspected]
        found = inspection.inspect(fresh, settings.cores, decodes=settings.images is not None)
        inspected.update(found)
        faults = {source: each.fault for source, each in found.items() if each.fault}
        if not faults:
            return chosen, inspected
        if not settings.skip_bad:
            raise DataError(
                f"{dataset.path}: {len(faults)} of the {len(chosen)} images chosen for calibration cannot be decoded; "
                "replace or remove them, or take others of the same classes: --skip_bad of build "
                f"(dataset.skip_bad: true)\n{inspection.list_faults(faults)}"
            )


def _notes_of_faults(inspected: Mapping[ImageSource, Inspected]) -> list[str]:
    faults = {source: each.fault for source, each in inspected.items() if each.fault}
    if not faults:
        return []
    return [f"{len(faults)} calibration images left out:\n{inspection.list_faults(faults)}"]


def _notes_of_depth(inspected: Mapping[ImageSource, Inspected]) -> list[str]:
    dark = {source: each.largest for source, each in inspected.items() if each.largest is not None}
    return [describe_dark(dark, len(inspected))] if dark else []


def _notes_of_order(dataset: Dataset, order: ClassOrder | None) -> list[str]:
    if order is not None:
        ignored = "dataset.class_order has no effect: the classes are ImageNet's, or labels come from a list"
        return [] if dataset.has_folder_classes else [ignored]
    line = class_order.note([known.id for known in dataset.classes]) if dataset.has_folder_classes else None
    return [] if line is None else [line]


def choose(
    dataset: Dataset, count: int, seed: int = 0, cover_classes: bool = True, *, without: Collection[ImageSource] = ()
) -> list[Sample]:
    """Return `count` images, as evenly spread over the classes as the images allow, in order of class and key.

    The choice depends on the images' keys and the seed alone, and on each class separately: neither the order of a
    directory nor another class's images change which images of a class come first. An image that is left out is
    replaced by the next of its class, without other changes.

    Args:
        dataset: images; those without a label form a class of their own.
        count: > 0.
        seed: another seed, another choice.
        cover_classes: refuse a choice without an image of every class of `dataset.classes`.
        without: images that are not to be chosen: they cannot be decoded.

    Raises:
        DataError: fewer images than wanted, fewer wanted than classes, or a class without an image.
    """
    if count < 1:
        raise DataError(f"sampler.get_data_num must be at least 1, got {count}")
    by_class: dict[int, list[Sample]] = {}
    for sample in dataset.samples:
        by_class.setdefault(-1 if sample.class_index is None else sample.class_index, []).append(sample)
    for index, samples in by_class.items():
        samples.sort(key=lambda sample: (sample.key, sample.source.name))
        random.Random(f"{seed} class {index}").shuffle(samples)
        by_class[index] = [sample for sample in samples if sample.source not in without]
    if cover_classes:
        _check_coverage(dataset, by_class, count)
    usable = sum(map(len, by_class.values()))
    if count > usable:
        decodable = " that can be decoded" if without else ""
        raise DataError(
            f"{dataset.path}: holds {usable} images{decodable}, sampler.get_data_num asks for {count};"
            f" ask for {usable} (--num_images of build, --num of calibset) or give a larger data set"
        )
    shares = _share_out({index: len(samples) for index, samples in by_class.items()}, count, seed)
    chosen = []
    for index, samples in sorted(by_class.items()):
        chosen += samples[: shares[index]]
    return sorted(chosen, key=_class_order)


def _check_coverage(dataset: Dataset, by_class: Mapping[int, Sequence[Sample]], count: int) -> None:
    total = len(dataset.classes)
    if count < total:
        raise DataError(
            f"sampler.get_data_num {count} is less than the {total} classes of {dataset.path}: set it to {total} or "
            "more (--num_images of build, --num of calibset), or dataset.sampler.cover_classes to false"
        )
    empty = [known.id for index, known in enumerate(dataset.classes) if not by_class.get(index)]
    if empty:
        damaged = "" if all(by_class.values()) else " that can be decoded"
        shown = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
        raise DataError(
            f"{dataset.path}: {len(empty)} of {total} classes have no image{damaged}: {shown};"
            " add images of them, remove folders that are no classes, or set dataset.sampler.cover_classes to false"
        )


def _share_out(sizes: Mapping[int, int], count: int, seed: int) -> dict[int, int]:
    """Return the number of images of each class: equal as far as the classes have them, the remainder at random."""
    order = sorted(sizes)
    random.Random(f"{seed} order").shuffle(order)
    shares = dict.fromkeys(order, 0)
    left = count
    while left:
        open_classes = [index for index in order if shares[index] < sizes[index]]
        step = max(1, min(left // len(open_classes), min(sizes[index] - shares[index] for index in open_classes)))
        for index in open_classes[:left]:
            shares[index] += step
            left -= step
    return shares


def _class_order(sample: Sample) -> tuple[int, str, str]:
    return (-1 if sample.class_index is None else sample.class_index, sample.key, sample.source.name)
