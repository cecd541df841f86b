"""Changes the height and width of the network's input, and the preprocessing with it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeGuard

from pipeline.config.kinds import MAX_SIDE
from pipeline.config.schema import Fault
from pipeline.config.vdsp import ColourOrder, NormType, PreprocessSpec, ResizeMode, centre_offset

if TYPE_CHECKING:
    from pipeline.config.build_config import BuildConfig


def is_side(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIDE


def with_size(cfg: BuildConfig, side: int) -> BuildConfig:
    """Return the build file for an input of side x side px.

    The crop gets that size, and the resize keeps its ratio to the crop: Resize 256 and CenterCrop 224 become 292 and
    256. The preprocessing is then described by `process_ops` alone.
    """
    batch, channels, _, _ = cfg.frontend.shape
    frontend = replace(cfg.frontend, shape=(batch, channels, side, side))
    if isinstance(cfg.described, Fault):
        return replace(cfg, frontend=frontend)
    described = _resized(cfg.described, side)
    dataset = replace(cfg.dataset, process_ops=process_ops_of(described), vdsp_params=None)
    resize = "no Resize" if described.resize_hw is None else f"Resize {_length(described)}"
    notice = f"--size {side}: {resize}, CenterCrop {side}"
    if cfg.dataset.vdsp_params is not None:
        notice += f"; {cfg.dataset.vdsp_params} is taken but for its sizes"
    cfg.document.notices.append(notice)
    return replace(cfg, frontend=frontend, dataset=dataset, described=described)


def _resized(spec: PreprocessSpec, side: int) -> PreprocessSpec:
    resize_hw = None
    if spec.resize_hw is not None:
        tall, wide = (round(side * whole / crop) for whole, crop in zip(spec.resize_hw, spec.crop_hw, strict=True))
        resize_hw = (tall, wide)
    if spec.resize is ResizeMode.SHORTER_SIDE and resize_hw is not None:
        # One length, whatever the crop was: the larger share keeps the crop within the image.
        resize_hw = (max(resize_hw), max(resize_hw))
    corner = None
    if spec.resize is ResizeMode.STRETCH and resize_hw is not None:
        tall, wide = resize_hw[0] - side, resize_hw[1] - side  # room
        corner = (centre_offset(tall, spec.preprocess_as), centre_offset(wide, spec.preprocess_as))
    return replace(
        spec, resize_hw=resize_hw, crop_hw=(side, side), crop_yx=corner, synthetic_hw=resize_hw or (side, side)
    )


def _length(spec: PreprocessSpec) -> object:
    assert spec.resize_hw is not None
    return spec.resize_hw[0] if spec.resize is ResizeMode.SHORTER_SIDE else list(spec.resize_hw)


def process_ops_of(spec: PreprocessSpec) -> tuple[dict[str, object], ...]:
    """Return the ops that `read_process_ops` reads as `spec`, whose crop lies at the centre."""
    ops: list[dict[str, object]] = [{"type": "DecodeImage"}]
    if spec.colour is ColourOrder.BGR:
        ops.append({"type": "CvtColor", "code": "COLOR_RGB2BGR"})
    if spec.resize_hw is not None:
        ops.append({"type": "Resize", "size": _length(spec), "interpolation": spec.filter.value})
    ops.append({"type": "CenterCrop", "crop_size": list(spec.crop_hw)})
    if spec.norm is NormType.MINUSMEAN_DIVSTD:
        # Twelve digits give back the numbers that the file had: 123.675 / 255 * 255 is not quite 123.675.
        mean, std = ([float(f"{value * 255:.12g}") for value in values] for values in (spec.mean, spec.std))
        ops.append({"type": "Normalize", "div255": False, "mean": mean, "std": std})
    elif spec.norm is not NormType.DIV255:
        ops.append({"type": "Normalize", "mean": list(spec.mean), "std": list(spec.std)})
    return (*ops, {"type": "ToTensor"})
