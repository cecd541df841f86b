"""Choose the calibration images: any N, every class present."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.artefacts import file_digest, fingerprint
from pipeline.config.build_file import BuildConfig, Precision
from pipeline.data.calibration_list import write_calibration_list
from pipeline.data.imagenet import Dataset, Sample, list_dataset
from pipeline.data.labels import ClassInfo, write_classes
from pipeline.data.sample import class_folder, sample_class_names
from pipeline.data.sources import scan
from pipeline.errors import DataError
from pipeline.stages.artefact_names import CALIBRATION, CLASSES, IMAGES

_SAMPLE_SPLIT = "calibration"


def identity(cfg: BuildConfig) -> object:
    """Return what this stage's outcome depends on. Images enter by name, size and time: the stage itself reads them."""
    dataset = cfg.dataset
    listing = None
    if dataset.path is not None:
        listing = fingerprint([[file.name, *file.stamp()] for file in scan(dataset.path).files])
    labels = file_digest(dataset.val_label) if dataset.val_label else None
    sampler = dataset.sampler
    return [
        str(dataset.path),
        listing,
        labels,
        sampler.suffix,
        sampler.get_data_num,
        sampler.seed,
        _covers(cfg),
        cfg.frontend.num_classes,
    ]


def _covers(cfg: BuildConfig) -> bool:
    """Only a calibration needs an image of every class."""
    return cfg.dataset.sampler.cover_classes and cfg.backend.dtype is Precision.INT8


def run(cfg: BuildConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the list of images, the digest of each, and the classes of the data set."""
    sampler = cfg.dataset.sampler
    if cfg.dataset.path is None:
        names = sample_class_names()
        folders = [class_folder(index) for index in range(len(names))]
        dataset = list_dataset(inputs["sample"] / _SAMPLE_SPLIT, class_ids=folders)
        classes = tuple(ClassInfo(folder, name) for folder, name in zip(folders, names, strict=True))
    else:
        dataset = list_dataset(
            cfg.dataset.path,
            sampler.suffix,
            cfg.dataset.val_label,
            class_count=cfg.frontend.num_classes,
            require_labels=_covers(cfg),
        )
        classes = dataset.classes
    count = sampler.get_data_num
    if cfg.backend.dtype is not Precision.INT8:
        count = min(count, len(dataset.samples))
    chosen = choose(dataset, count, sampler.seed, _covers(cfg))
    write_calibration_list(chosen, out / CALIBRATION, sampler.seed)
    digests = (f"{hashlib.sha256(sample.source.read()).hexdigest()}  {sample.source.name}\n" for sample in chosen)
    (out / IMAGES).write_text("".join(digests), encoding="utf-8", errors="surrogateescape")
    write_classes(out / CLASSES, classes)


def choose(dataset: Dataset, count: int, seed: int = 0, cover_classes: bool = True) -> list[Sample]:
    """Return `count` images, as evenly spread over the classes as the images allow, in order of class and key.

    The choice depends on the images' keys and the seed alone, and on each class separately: neither the order of a
    directory nor another class's images change which images of a class come first.

    Args:
        dataset: images; those without a label form a class of their own.
        count: > 0.
        seed: another seed, another choice.
        cover_classes: refuse a choice without an image of every class of `dataset.classes`.

    Raises:
        DataError: fewer images than wanted, fewer wanted than classes, or a class without an image.
    """
    if count < 1:
        raise DataError(f"sampler.get_data_num must be at least 1, got {count}")
    by_class: dict[int, list[Sample]] = {}
    for sample in dataset.samples:
        by_class.setdefault(-1 if sample.class_index is None else sample.class_index, []).append(sample)
    if cover_classes:
        _check_coverage(dataset, by_class, count)
    if count > len(dataset.samples):
        raise DataError(
            f"{dataset.path}: holds {len(dataset.samples)} images, sampler.get_data_num asks for {count};"
            " ask for fewer (--num of calibset) or give a larger data set"
        )
    shares = _share_out({index: len(samples) for index, samples in by_class.items()}, count, seed)
    chosen = []
    for index, samples in sorted(by_class.items()):
        samples.sort(key=lambda sample: (sample.key, sample.source.name))
        random.Random(f"{seed} class {index}").shuffle(samples)
        chosen += samples[: shares[index]]
    return sorted(chosen, key=_class_order)


def _check_coverage(dataset: Dataset, by_class: Mapping[int, Sequence[Sample]], count: int) -> None:
    total = len(dataset.classes)
    if count < total:
        raise DataError(
            f"sampler.get_data_num {count} is less than the {total} classes of {dataset.path}: set dataset.sampler."
            f"get_data_num (--num of calibset) to {total} or more, or dataset.sampler.cover_classes to false"
        )
    empty = [known.id for index, known in enumerate(dataset.classes) if index not in by_class]
    if empty:
        shown = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
        raise DataError(
            f"{dataset.path}: {len(empty)} of {total} classes have no image: {shown};"
            " add images of them, or set dataset.sampler.cover_classes to false"
        )


def _share_out(sizes: Mapping[int, int], count: int, seed: int) -> dict[int, int]:
    """Return how many images each class gives: equal numbers as far as each class has them, odd ones drawn by lot."""
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
