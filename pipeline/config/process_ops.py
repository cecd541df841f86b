"""`dataset.process_ops:` of a build file, the other spelling of a `PreprocessSpec`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from pipeline.config.choices import PreprocessAs
from pipeline.config.kinds import MAX_SIDE
from pipeline.config.pixel_units import check_unit
from pipeline.config.schema import MISSING, Fault, Section, did_you_mean, shown
from pipeline.config.vdsp import (
    ColourOrder,
    NormType,
    PreprocessSpec,
    ResizeFilter,
    ResizeMode,
    Triple,
    centre_offset,
)

# Op types in the order they must stand. ToTensor may be on either side of Normalize: the vendor has it after,
# torchvision before, and both mean the same.
_ORDER = {"DecodeImage": 0, "Resize": 1, "CenterCrop": 2, "ToTensor": 3, "Normalize": 3}
# Exchanging channels commutes with resizing and cropping, so this op may be anywhere before Normalize.
_CVT_COLOR = "CvtColor"


class _CvtCode(Enum):
    RGB2BGR = "COLOR_RGB2BGR"
    BGR2RGB = "COLOR_BGR2RGB"


@dataclass(frozen=True, kw_only=True)
class ProcessOps:
    """The parameters of a build file's ops; the order in which they run is fixed."""

    resize: ResizeMode = ResizeMode.NONE
    resize_hw: tuple[int, int] | None = None  # SHORTER_SIDE: (size, size)
    interpolation: ResizeFilter | None = None
    crop_hw: tuple[int, int] | None = None
    colour: ColourOrder = ColourOrder.RGB
    mean: Triple = (0.0, 0.0, 0.0)  # 0..1 units
    std: Triple = (1.0, 1.0, 1.0)  # 0..1 units
    norm: NormType = NormType.DIV255_MINUSMEAN_DIVSTD


def spec_from_process_ops(
    ops: ProcessOps, preprocess_as: PreprocessAs, default_filter: ResizeFilter = ResizeFilter.BILINEAR_CV
) -> PreprocessSpec:
    """The preprocessing that `ops` describe, as `read_process_ops` gave them.

    Args:
        preprocess_as: whose arithmetic they mean.
        default_filter: the resize filter where the ops name none.
    """
    crop_hw = ops.crop_hw or ops.resize_hw
    assert crop_hw is not None  # ensured by read_process_ops
    corner = None
    if ops.resize is ResizeMode.STRETCH and ops.resize_hw is not None:
        room = (ops.resize_hw[0] - crop_hw[0], ops.resize_hw[1] - crop_hw[1])
        corner = (centre_offset(room[0], preprocess_as), centre_offset(room[1], preprocess_as))
    return PreprocessSpec(
        resize=ops.resize,
        resize_hw=ops.resize_hw,
        filter=ops.interpolation or default_filter,
        crop_hw=crop_hw,
        crop_yx=corner,
        mean=ops.mean,
        std=ops.std,
        colour=ops.colour,
        norm=ops.norm,
        preprocess_as=preprocess_as,
        synthetic_hw=ops.resize_hw or crop_hw,
    )


def custom_op(dataset: Section, key: str) -> Fault | None:
    """Return the fault of the first op that is code of the vendor's toolchain, which a build cannot run."""
    items = dataset.values.get(key)
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict) and item.get("type") == "CustomFunc":
            return dataset.document.at(
                (*dataset.key, key, index, "type"),
                "CustomFunc calls code of the vendor's toolchain; say it with Resize, CenterCrop and Normalize, or "
                "give --set dataset.vdsp_params=FILE",
            )
    return None


def read_process_ops(dataset: Section, key: str) -> ProcessOps | None:
    """Read the list `key` of the section `dataset:`. None where there is none, or where it has faults."""
    found = len(dataset.document.faults)
    items = dataset.sections(key)
    if not items:
        return None
    by_type = _sort_by_type(items)
    mode, resize_hw, interpolation = _read_resize(by_type.get("Resize"))
    crop_hw = _read_crop(by_type.get("CenterCrop"))
    norm, mean, std = _read_normalize(by_type.get("Normalize"))
    colour = ColourOrder.RGB
    if (section := by_type.get(_CVT_COLOR)) is not None:
        section.choice("code", _CvtCode, _CvtCode.RGB2BGR, required=True)
        colour = ColourOrder.BGR
    for section in by_type.values():
        section.done()
    if len(dataset.document.faults) == found:
        _check_sizes(dataset, key, mode, resize_hw, crop_hw)
    if len(dataset.document.faults) > found:
        return None
    return ProcessOps(
        resize=mode,
        resize_hw=resize_hw,
        interpolation=interpolation,
        crop_hw=crop_hw,
        colour=colour,
        mean=mean,
        std=std,
        norm=norm,
    )


def _sort_by_type(items: Sequence[Section]) -> dict[str, Section]:
    """The ops by type. Unknown, repeated and misplaced ones become faults."""
    by_type: dict[str, Section] = {}
    before = ""
    for item in items:
        name = item.text("type", "", required=True)
        if name and name not in _ORDER and name != _CVT_COLOR:
            known = [*_ORDER, _CVT_COLOR]
            hint = did_you_mean(name, known) or "; known here: " + ", ".join(known)
            item.fault("type", f"unknown op {shown(name)}{hint}")
        elif name in by_type:
            item.fault("type", f"{name} stands twice")
        elif name:
            by_type[name] = item
            if name == _CVT_COLOR and "Normalize" in by_type:
                item.fault("type", f"{name} must come before Normalize")
            elif before and _ORDER.get(name, 9) < _ORDER[before]:
                item.fault("type", f"{name} must come before {before}")
            before = name if name in _ORDER else before
    return by_type


def _read_resize(section: Section | None) -> tuple[ResizeMode, tuple[int, int] | None, ResizeFilter | None]:
    if section is None:
        return ResizeMode.NONE, None, None
    interpolation = section.choice("interpolation", ResizeFilter, None)
    size = _read_size(section, "size", "the shorter side")
    if isinstance(size, int):
        return ResizeMode.SHORTER_SIDE, (size, size), interpolation
    return ResizeMode.STRETCH, size, interpolation


def _read_crop(section: Section | None) -> tuple[int, int] | None:
    if section is None:
        return None
    size = _read_size(section, "crop_size", "both sides")
    return (size, size) if isinstance(size, int) else size


def _read_size(section: Section, key: str, meaning: str) -> int | tuple[int, int]:
    """One length, or [height, width], in pixels."""
    value = section.take(key, required=True)
    if _is_side(value):
        return value  # type: ignore[return-value]
    if isinstance(value, list) and len(value) == 2 and all(_is_side(side) for side in value):
        return value[0], value[1]
    if value is not MISSING:
        section.fault(key, f"expected [height, width] or one length ({meaning}) in 1..{MAX_SIDE}, got {shown(value)}")
    return 1, 1


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIDE


def _read_normalize(section: Section | None) -> tuple[NormType, Triple, Triple]:
    """Norm type, and mean and std in 0..1 units. Without the op there is ToTensor's division by 255."""
    if section is None:
        return NormType.DIV255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    div255 = section.boolean("div255", True)
    for key in ("mean", "std"):
        if key not in section:
            section.fault(key, "missing")
    mean = section.numbers("mean", (0.0, 0.0, 0.0))
    std = section.numbers("std", (1.0, 1.0, 1.0), positive=True)
    check_unit(section, mean, std, of_share=div255, other="div255: false" if div255 else "no div255: false")
    unit = 1.0 if div255 else 255.0
    norm = NormType.DIV255_MINUSMEAN_DIVSTD if div255 else NormType.MINUSMEAN_DIVSTD
    return norm, (mean[0] / unit, mean[1] / unit, mean[2] / unit), (std[0] / unit, std[1] / unit, std[2] / unit)


def _check_sizes(
    dataset: Section, key: str, mode: ResizeMode, resize_hw: tuple[int, int] | None, crop_hw: tuple[int, int] | None
) -> None:
    """Every image must come out at one size."""
    if crop_hw is None and mode is not ResizeMode.STRETCH:
        wanted = "CenterCrop, or Resize to [height, width]"
        dataset.fault(key, f"the output size depends on the image; expected {wanted}")
    elif crop_hw is not None and resize_hw is not None and (crop_hw[0] > resize_hw[0] or crop_hw[1] > resize_hw[1]):
        dataset.fault(
            key, f"CenterCrop {list(crop_hw)} does not fit the resized image {list(resize_hw)} [height, width]"
        )
