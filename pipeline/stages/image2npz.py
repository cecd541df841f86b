"""Decode the evaluation images of a build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.build_config import BuildConfig
from pipeline.config.choices import ClassOrder, PreprocessAs
from pipeline.data import inspection
from pipeline.data.conversion import convert
from pipeline.data.imagenet import Dataset, list_dataset
from pipeline.data.labels import read_classes
from pipeline.errors import DataError
from pipeline.stages.artefact_names import CLASSES, DATALIST, VAL_LABEL, write_notes
from pipeline.stages.settings import ImageTree, InputFile

_SHOWN_CLASSES = 5


@dataclass(frozen=True, kw_only=True)
class Settings:
    images: ImageTree | None  # None: those of the sample
    labels: InputFile | None
    suffix: str
    count: int | None  # images, at most; None: all
    num_classes: int | None
    class_order: ClassOrder | None
    skip_bad: bool  # leave out images that cannot be decoded
    preprocess_as: PreprocessAs  # whether EXIF turns images


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what the build's stage depends on beside its inputs."""
    evaluation = cfg.evaluation
    return Settings(
        images=None if evaluation.path is None else ImageTree(evaluation.path),
        labels=None if evaluation.val_label is None else InputFile(evaluation.val_label),
        suffix=cfg.dataset.sampler.suffix,
        count=evaluation.num,
        num_classes=cfg.frontend.num_classes,
        class_order=cfg.dataset.class_order,
        skip_bad=cfg.dataset.skip_bad,
        preprocess_as=cfg.dataset.preprocess_as or PreprocessAs.TORCHVISION,
    )


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the evaluation images of a build with their datalist (paths below `out`) and labels.

    The first `evaluation.num` images are those of a stride through the data set, so that they spread over its classes.

    Raises:
        DataError: images cannot be decoded; all are named, and the others are kept for the next run.
    """
    notes = []
    # Without calibration images the evaluation images define the classes.
    classes = read_classes(inputs["calibset"] / CLASSES) if "calibset" in inputs else ()
    class_ids = [known.id for known in classes] or None
    if settings.images is None:
        dataset = list_dataset(inputs["sample"] / "evaluation", class_ids=class_ids)
    else:
        dataset = list_dataset(
            settings.images.path,
            settings.suffix,
            None if settings.labels is None else settings.labels.path,
            class_ids,
            class_count=settings.num_classes,
            class_order=settings.class_order,
        )
        notes = _absent_classes(dataset)
    wanted = min(settings.count or len(dataset.samples), len(dataset.samples))
    samples = [dataset.samples[index * len(dataset.samples) // wanted] for index in range(wanted)]
    scratch_list = out / f".{DATALIST}"
    converted = convert(samples, out / "npz", scratch_list, preprocess_as=settings.preprocess_as, tolerates_bad=True)
    faults = converted.faults
    scratch_list.unlink(missing_ok=True)
    if faults and (not settings.skip_bad or len(faults) == len(samples)):
        raise DataError(
            f"{dataset.path}: {len(faults)} of the {len(samples)} evaluation images cannot be decoded; replace or "
            "remove them, or leave them out: --skip_bad of build (dataset.skip_bad: true)\n"
            + inspection.list_faults(faults)
        )
    samples = [sample for sample in samples if sample.source not in faults]
    if faults:
        notes.append(f"{len(faults)} evaluation images left out:\n{inspection.list_faults(faults)}")
    write_notes(out, notes)
    for name, lines in (
        (DATALIST, [f"npz/{sample.key}.npz" for sample in samples]),
        (VAL_LABEL, [f"{sample.key} {sample.class_index}" for sample in samples]),
    ):
        (out / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")


def _absent_classes(dataset: Dataset) -> list[str]:
    """Return a line where the evaluation images lack classes of the calibration images."""
    present = {sample.class_index for sample in dataset.samples}
    absent = [known.id for index, known in enumerate(dataset.classes) if index not in present]
    if not absent:
        return []
    named = ", ".join(map(repr, absent[:_SHOWN_CLASSES])) + (", ..." if len(absent) > _SHOWN_CLASSES else "")
    return [f"{dataset.path}: no images of {len(absent)} of the {len(dataset.classes)} classes: {named}"]
