"""The sections of a build file about images: those for calibration, `dataset:`, and those for `evaluation:`.

What `sections.py` says of generated files holds here too.
"""
# ruff: noqa: RUF009  (`key` and `section` are `dataclasses.field` with metadata)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.choices import ClassOrder, DatasetType, PreprocessAs
from pipeline.config.keys import key, section
from pipeline.config.kinds import ByHand, Integer, PathTo, Switch, Text, choice

_LAYOUTS = "one folder per class, a flat folder with a label list, or a tar file of either"
_LABELS = "label list of a flat folder, lines `name index`; null: one found in or beside it"


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Section `dataset.sampler:`."""

    suffix: str = key(
        "any",
        Text(),
        "which image files count: `JPEG` takes .jpg and .jpeg, `any` every kind that Pillow reads; what is left out is "
        "counted",
    )
    get_data_num: int = key(1000, Integer(1), "number of calibration images", flag="--num_images", metavar="N")
    seed: int = key(0, Integer(0), "seed of the random choice of images")
    cover_classes: bool = key(True, Switch(), "a class without an image is an error")


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Section `dataset:`, the calibration images."""

    type: DatasetType = key(DatasetType.TVM, choice(DatasetType), "the vendor's value, without effect")
    path: Path | None = key(
        None, PathTo(), f"calibration images: {_LAYOUTS}; null: the generated sample", flag="--dataset", metavar="DIR"
    )
    val_label: Path | None = key(None, PathTo(), _LABELS)
    class_order: ClassOrder | None = key(  # also of the evaluation images
        None,
        choice(ClassOrder),
        "order of class folders whose names are numbers: `text` (0, 1, 10, 2, as torchvision sorts) or `numeric`; "
        "null: `text`, and the build reports the accuracy of float32 in either order",
    )
    vdsp_params: str | None = key(
        None,
        Text(),
        "preprocessing as a vdsp_params file, by path or by its name in vdsp_params/; must agree with `process_ops`",
    )
    sampler: SamplerConfig = section(SamplerConfig, "which of the images")
    process_ops: tuple[Mapping[str, object], ...] = key(
        (),
        ByHand({"type": ["array", "null"]}, "a list of ops"),
        "preprocessing as the vendor's documents write it: DecodeImage, Resize, CenterCrop, Normalize, ToTensor, "
        "CvtColor; without this and `vdsp_params`, and with the checkpoint `auto`: as its library recorded it",
        also="transform_ops",
    )
    preprocess_as: PreprocessAs | None = key(  # resolved by `read_dataset`
        None,
        choice(PreprocessAs),
        "library whose rounding of sizes and crops, and use of EXIF, is followed; null: `paddleclas` for frontends "
        "paddleclas and paddle, else `torchvision`",
    )
    skip_bad: bool = key(
        False,
        Switch(),
        "an image that cannot be decoded is replaced by another of its class (calibration) or left out (evaluation), "
        "and named; false: all of them are named in one error",
        flag="--skip_bad",
        flag_means="an image that cannot be decoded is replaced by another of its class (calibration) or left out "
        "(evaluation), and named",
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Section `evaluation:`, ours: the images that the accuracy is measured on."""

    path: Path | None = key(
        None, PathTo(), f"evaluation images: {_LAYOUTS}; null: none", flag="--evaluation", metavar="DIR"
    )
    val_label: Path | None = key(None, PathTo(), _LABELS)
    num: int | None = key(None, Integer(1), "number of evaluation images, spread over the classes; null: all")
