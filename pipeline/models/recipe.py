"""How images are prepared for a network, as its makers recorded it: with its library, or in files beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.config.choices import PreprocessAs
from pipeline.errors import ConfigError

Numbers = tuple[float, ...]

# Names of Pillow's filters, as timm, torchvision and transformers write them -> as build files do.
_FILTERS = {
    "bilinear": "BILINEAR_PILLOW",
    "bicubic": "BICUBIC_PILLOW",
    "lanczos": "LANCZOS_PILLOW",
    "nearest": "NEAREST_PILLOW",
    "random": "BILINEAR_PILLOW",  # timm: of training; it evaluates with bilinear
}
# Pillow's own numbers, as transformers writes them.
_FILTER_NUMBERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


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
}
_UNCROPPED = 384  # px: from there on, transformers' ConvNeXt resizes to the size and crops nothing


@dataclass(frozen=True)
class Recipe:
    """Decode, resize, crop the centre, normalise; sizes are (height, width) in pixels, statistics of a 0..1 image."""

    crop_hw: tuple[int, int]
    resize: int | tuple[int, int]  # the shorter side, or both
    interpolation: str  # as build files name it
    mean: Numbers
    std: Numbers
    source: str  # where it was found, for people
    classes: int | None = None  # of the weights it was recorded with
    bgr: bool = False  # channels are exchanged
    preprocess_as: PreprocessAs = PreprocessAs.TORCHVISION  # whose rounding of sizes and corners it means

    def sized(self, side: int) -> Recipe:
        """Return the recipe for an input of side x side px; the resize keeps its ratio to the crop."""
        if self.crop_hw == (side, side):
            return self
        if isinstance(self.resize, int):
            return replace(self, crop_hw=(side, side), resize=round(side * self.resize / min(self.crop_hw)))
        height, width = (round(side * length / crop) for length, crop in zip(self.resize, self.crop_hw, strict=True))
        return replace(self, crop_hw=(side, side), resize=(height, width))

    def process_ops(self) -> list[dict[str, object]]:
        """Return it as `dataset.process_ops` of a build file."""
        height, width = self.crop_hw
        size = self.resize if isinstance(self.resize, int) else list(self.resize)
        exchange: list[dict[str, object]] = [{"type": "CvtColor", "code": "COLOR_RGB2BGR"}] if self.bgr else []
        return [
            {"type": "DecodeImage"},
            {"type": "Resize", "size": size, "interpolation": self.interpolation},
            {"type": "CenterCrop", "crop_size": height if height == width else [height, width]},
            *exchange,
            _normalize(self.mean, self.std),
            {"type": "ToTensor"},
        ]

    def __str__(self) -> str:
        crop = self.crop_hw[0] if self.crop_hw[0] == self.crop_hw[1] else list(self.crop_hw)
        size = self.resize if isinstance(self.resize, int) else list(self.resize)
        how = self.interpolation.removesuffix("_PILLOW").lower()
        return (
            f"Resize {size} ({how}), CenterCrop {crop}, mean {_shown(self.mean)}, std {_shown(self.std)}"
            f"{', channels as BGR' if self.bgr else ''}"
        )


def _normalize(mean: Numbers, std: Numbers) -> dict[str, object]:
    """Return the op; of pixels as they are in their own unit, since 1/255 is no decimal fraction."""
    if (set(mean), set(std)) == ({0.0}, {1 / 255}):
        return {"type": "Normalize", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "div255": False}
    return {"type": "Normalize", "mean": list(mean), "std": list(std)}


def _shown(values: Numbers) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"


def of_timm(record: Mapping[str, object], source: str) -> Recipe:
    """Return the recipe of timm's `pretrained_cfg`, as timm's own evaluation transforms read it.

    Args:
        source: for people, and for errors.

    Raises:
        ConfigError: it asks for something that build files cannot say.
    """
    _, height, width = _integers(record, "input_size", (3, 224, 224), source)
    share = float(_number(record.get("crop_pct") or 0.875, source))
    mode = record.get("crop_mode") or "center"
    scaled = (math.floor(height / share), math.floor(width / share))
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise ConfigError(f"{source}: crop_mode {mode!r} at {height}x{width} px: write process_ops for it by hand")
    return Recipe(
        crop_hw=(height, width),
        resize=scaled[0] if mode == "center" else scaled,
        interpolation=_filter(record.get("interpolation") or "bilinear", source),
        mean=_numbers(record, "mean", source),
        std=_numbers(record, "std", source),
        source=source,
        classes=_whole(record.get("num_classes")),
    )


def of_transformers(record: Mapping[str, object], side: int | None, source: str) -> Recipe:
    """Return the recipe of a `preprocessor_config.json`, as transformers' image processors read it.

    Args:
        side: height and width that the network takes, where it is known.

    Raises:
        ConfigError: it says nothing of mean and std or size, or asks for something that build files cannot say.
    """
    kind = str(record.get("image_processor_type") or record.get("feature_extractor_type") or "")
    unlike = next((why for name, why in _UNLIKE.items() if kind.startswith(name)), None)
    if unlike is not None:
        raise ConfigError(
            f"{source}: {kind} {unlike}, which process_ops cannot say: move the file away, and change what init writes "
            "to the nearest that they can"
        )
    mean, std = _transformers_statistics(record, kind, source)
    said = record.get("size", record.get("crop_size"))
    if isinstance(said, int) and kind.startswith(_SHORTER_SIDE):
        said = {"shortest_edge": said}
    resize = _transformers_size(said, side, source)
    crop = _transformers_size(record.get("crop_size"), side, source) if record.get("do_center_crop") else None
    share = record.get("crop_pct")
    if share is not None:  # of ConvNeXt, ResNet, PoolFormer: the size is the crop's
        length = resize if isinstance(resize, int) else min(resize)
        crops_always = not kind.startswith("PoolFormer")
        crop = (length, length) if crops_always else crop
        resize = int(length / float(_number(share, source)))
        if length >= _UNCROPPED and crops_always:
            resize = (length, length)
    elif kind.startswith("Levit") and isinstance(resize, int):
        resize = int(256 / 224 * resize)
    crop_hw = (crop, crop) if isinstance(crop, int) else crop
    if crop_hw is None:
        crop_hw = resize if isinstance(resize, tuple) else (side or resize, side or resize)
    bgr = bool(record.get("do_flip_channel_order", kind.startswith("MobileViT")))
    interpolation = _filter(record.get("resample", 2), source)
    whose = PreprocessAs.TRANSFORMERS
    return Recipe(crop_hw, resize, interpolation, mean, std, source, bgr=bgr, preprocess_as=whose)


def _transformers_statistics(record: Mapping[str, object], kind: str, source: str) -> tuple[Numbers, Numbers]:
    """Return mean and std of a 0..1 image, whatever the file's own unit is."""
    mean: Numbers = (0.0, 0.0, 0.0)
    std: Numbers = (1.0, 1.0, 1.0)
    if record.get("do_rescale") is False:
        raise ConfigError(f"{source}: do_rescale is false: write process_ops for it by hand")
    if record.get("do_normalize", not kind.startswith("MobileViT")):
        mean, std = _numbers(record, "image_mean", source), _numbers(record, "image_std", source)
    factor = float(_number(record.get("rescale_factor", 1 / 255), source))
    if record.get("include_top", kind.startswith("EfficientNet")):  # it divides by the std once more, whatever the unit
        std = tuple(one * other for one, other in zip(std, _numbers(record, "image_std", source), strict=True))
    if math.isclose(factor, 1 / 255, rel_tol=1e-4):
        return mean, std
    if not math.isclose(factor, 1 / 127.5, rel_tol=1e-4):
        raise ConfigError(f"{source}: rescale_factor {factor}: write process_ops for it by hand")
    offset = 0.5 if record.get("rescale_offset") else 0.0  # of EfficientNet: x / 127.5 - 1 before the normalisation
    return tuple(value / 2 + offset for value in mean), tuple(value / 2 for value in std)


def _transformers_size(value: object, side: int | None, source: str) -> int | tuple[int, int]:
    """Return the shorter side, or height and width. One number means both."""
    if isinstance(value, Mapping):
        if "shortest_edge" in value:
            return int(_number(value["shortest_edge"], source))
        if "height" in value and "width" in value:
            return int(_number(value["height"], source)), int(_number(value["width"], source))
    if isinstance(value, int):
        return value, value
    if isinstance(value, Sequence) and len(value) == 2:
        return int(value[0]), int(value[1])
    if side is not None and value is None:
        return side, side
    raise ConfigError(f"{source}: size {value!r}: write process_ops for it by hand")


def _filter(value: object, source: str) -> str:
    name = _FILTER_NUMBERS.get(value) if isinstance(value, int) else str(value)
    if name not in _FILTERS:
        raise ConfigError(f"{source}: interpolation {value!r}; known are {', '.join(_FILTERS)}")
    return _FILTERS[name]


def _number(value: object, source: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise ConfigError(f"{source}: expected a number, got {value!r}")


def _numbers(record: Mapping[str, object], key: str, source: str) -> Numbers:
    value = record.get(key)
    if not isinstance(value, Sequence) or not value or isinstance(value, str):
        raise ConfigError(f"{source}: {key} is {value!r}, wanted a number for each channel")
    return tuple(_number(each, source) for each in value)


def _integers(record: Mapping[str, object], key: str, default: tuple[int, ...], source: str) -> tuple[int, ...]:
    value = record.get(key, default)
    if not isinstance(value, Sequence) or len(value) != len(default):
        raise ConfigError(f"{source}: {key} is {value!r}, wanted {len(default)} numbers")
    return tuple(int(_number(each, source)) for each in value)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
