"""How transformers' image processors prepare images, by their `preprocessor_config.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.config.choices import PreprocessAs
from pipeline.errors import ConfigError
from pipeline.models.recipe import Recipe
from pipeline.models.record_values import BY_HAND, Numbers, check_crop, completed, number, numbers, pillow_filter

# Processors of transformers to which one number as the size means the shorter side, as files of before 4.25 have it.
_SHORTER_SIDE = (
    *("Bit", "CLIP", "ConvNext", "Levit", "MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer", "ViTHybrid"),
)
# What process_ops cannot say of others: the first letters of their names -> why.
_UNLIKE = {
    "Perceiver": "crops before it resizes",
    "TextNet": "rounds sizes to multiples of 32",
    "Siglip2": "makes patches of images of any size",
    "Pixtral": "gives images of any size",
    "Donut": "fits images into a frame and pads them",
}
# What processors of version 5.24.0 take for what their file does not say: the first letters of their names -> keys.
_CROPS: Mapping[str, object] = {"do_center_crop": True}
_CROPS_BICUBIC: Mapping[str, object] = {**_CROPS, "resample": 3, "size": {"shortest_edge": 224}, "crop_size": 224}
_USUAL: Mapping[str, Mapping[str, object]] = {
    "Beit": {"resample": 3},
    "Bit": _CROPS_BICUBIC,
    "CLIP": _CROPS_BICUBIC,
    "ConvNext": {"resample": 3, "size": {"shortest_edge": 384}, "crop_pct": 224 / 256},
    "DeiT": {**_CROPS, "resample": 3, "size": 256, "crop_size": 224},
    "Levit": _CROPS_BICUBIC,
    "MobileNet": {**_CROPS, "size": {"shortest_edge": 256}, "crop_size": 224},
    "MobileViT": _CROPS,
    "PoolFormer": {**_CROPS_BICUBIC, "crop_pct": 0.9},
    "Siglip": {"resample": 3},
}
_OF_VERSION = ("EfficientNet", "Pvt")  # whose filter is another in version 4, where unsaid
# The processors that read a key; others may have it in their file all the same.
_READ_CROP_PCT, _READ_FLIP = ("ConvNext", "PoolFormer"), ("MobileViT",)
_UNCROPPED = 384  # px: from there on, transformers' ConvNeXt resizes to the size and crops nothing


def of_transformers(record: Mapping[str, object], side: int | None, source: str) -> Recipe:
    """Return the recipe of a `preprocessor_config.json`, as transformers' image processors read it.

    What the file does not say is as the processor that it names has it.

    Args:
        side: height and width that the network takes, where it is known.

    Raises:
        ConfigError: it says nothing of mean and std or size, or asks for something that build files cannot say.
    """
    kind = str(record.get("image_processor_type") or record.get("feature_extractor_type") or "")
    unlike = next((why for name, why in _UNLIKE.items() if kind.startswith(name)), None)
    if unlike is not None:
        raise ConfigError(
            f"{source}: {kind} {unlike}, which process_ops cannot say: {BY_HAND} to the nearest that they can"
        )
    record = completed(record, next((usual for name, usual in _USUAL.items() if kind.startswith(name)), {}))
    mean, std = _transformers_statistics(record, kind, source)
    resize, crop = _transformers_geometry(record, kind, side, source)
    crop_hw = (crop, crop) if isinstance(crop, int) else crop
    if crop_hw is None:
        if resize is None:
            raise ConfigError(f"{source}: neither resizes nor crops images, which may then have any size: {BY_HAND}")
        crop_hw = resize if isinstance(resize, tuple) else (side or resize, side or resize)
    check_crop(crop_hw, resize, source)
    bgr = bool(record.get("do_flip_channel_order", kind.startswith("MobileViT"))) and _reads(kind, _READ_FLIP)
    if "resample" not in record and kind.startswith(_OF_VERSION):
        raise ConfigError(
            f"{source}: {kind} without resample differs between versions of transformers: add that key, 3 for bicubic, "
            "2 for bilinear, 0 for nearest"
        )
    interpolation = pillow_filter(record.get("resample", 2), source)
    whose = PreprocessAs.TRANSFORMERS
    return Recipe(crop_hw, resize, interpolation, mean, std, source, bgr=bgr, preprocess_as=whose)


def _reads(kind: str, kinds: tuple[str, ...]) -> bool:
    """Tell whether a processor reads a key; files of no named processor are taken at their word."""
    return not kind or kind.startswith(kinds)


def _transformers_geometry(
    record: Mapping[str, object], kind: str, side: int | None, source: str
) -> tuple[int | tuple[int, int] | None, int | tuple[int, int] | None]:
    """Return the size to resize to and the crop, each the shorter side or (height, width); None: not done."""
    said = record.get("size", record.get("crop_size"))
    if isinstance(said, int) and kind.startswith(_SHORTER_SIDE):
        said = {"shortest_edge": said}
    crop = _transformers_size(record.get("crop_size"), side, source) if record.get("do_center_crop") else None
    if record.get("do_resize") is False:
        return None, crop
    resize = _transformers_size(said, side, source)
    share = record.get("crop_pct") if _reads(kind, _READ_CROP_PCT) else None
    if share is not None:  # of ConvNeXt, ResNet, PoolFormer: the size is the crop's
        length = resize if isinstance(resize, int) else min(resize)
        crops_always = not kind.startswith("PoolFormer")
        crop = (length, length) if crops_always else crop
        resize = int(length / float(number(share, source)))
        if length >= _UNCROPPED and crops_always:
            resize = (length, length)
    elif kind.startswith("Levit") and isinstance(resize, int):
        resize = int(256 / 224 * resize)
    return resize, crop


def _transformers_statistics(record: Mapping[str, object], kind: str, source: str) -> tuple[Numbers, Numbers]:
    """Return mean and std of a 0..1 image, whatever the file's own unit is."""
    mean: Numbers = (0.0, 0.0, 0.0)
    std: Numbers = (1.0, 1.0, 1.0)
    if record.get("do_rescale") is False:
        raise ConfigError(f"{source}: do_rescale is false: write process_ops for it by hand")
    if record.get("do_normalize", not kind.startswith("MobileViT")):
        mean, std = numbers(record, "image_mean", source), numbers(record, "image_std", source)
    factor = float(number(record.get("rescale_factor", 1 / 255), source))
    if record.get("include_top", kind.startswith("EfficientNet")):  # it divides by the std once more, whatever the unit
        std = tuple(one * other for one, other in zip(std, numbers(record, "image_std", source), strict=True))
    if math.isclose(factor, 1 / 255, rel_tol=1e-4):
        return mean, std
    if not math.isclose(factor, 1 / 127.5, rel_tol=1e-4):
        raise ConfigError(f"{source}: rescale_factor {factor}: write process_ops for it by hand")
    offset = 0.5 if record.get("rescale_offset") else 0.0  # of EfficientNet: x / 127.5 - 1 before the normalisation
    return tuple(value / 2 + offset for value in mean), tuple(value / 2 for value in std)


def _transformers_size(value: object, side: int | None, source: str) -> int | tuple[int, int]:
    """Return the shorter side, or height and width. One number means both."""
    if isinstance(value, Mapping):
        if value.get("longest_edge"):
            raise ConfigError(f"{source}: size has a longest_edge, which process_ops cannot say: {BY_HAND}")
        if "shortest_edge" in value:
            return int(number(value["shortest_edge"], source))
        if "height" in value and "width" in value:
            return int(number(value["height"], source)), int(number(value["width"], source))
    if isinstance(value, int):
        return value, value
    if isinstance(value, Sequence) and len(value) == 2:
        return int(value[0]), int(value[1])
    if side is not None and value is None:
        return side, side
    raise ConfigError(f"{source}: size {value!r}: write process_ops for it by hand")
