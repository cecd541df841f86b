"""How images are prepared for a network, as its makers recorded it: with its library, or in files beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.config.choices import PreprocessAs
from pipeline.errors import ConfigError
from pipeline.models.record_values import Numbers, check_crop, completed, integers, number, numbers, pillow_filter

# What timm takes where a record does not say it.
_TIMM_USUAL: Mapping[str, object] = {
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


@dataclass(frozen=True)
class Recipe:
    """Decode, resize, crop the centre, normalise; sizes are (height, width) in pixels, statistics of a 0..1 image."""

    crop_hw: tuple[int, int]
    resize: int | tuple[int, int] | None  # the shorter side, or both; None: images are cropped as they are
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
        if self.resize is None:
            return replace(self, crop_hw=(side, side))
        if isinstance(self.resize, int):
            return replace(self, crop_hw=(side, side), resize=round(side * self.resize / min(self.crop_hw)))
        height, width = (round(side * length / crop) for length, crop in zip(self.resize, self.crop_hw, strict=True))
        return replace(self, crop_hw=(side, side), resize=(height, width))

    def process_ops(self) -> list[dict[str, object]]:
        """Return it as `dataset.process_ops` of a build file."""
        height, width = self.crop_hw
        size = list(self.resize) if isinstance(self.resize, tuple) else self.resize
        resize: list[dict[str, object]] = []
        if size is not None:
            resize = [{"type": "Resize", "size": size, "interpolation": self.interpolation}]
        exchange: list[dict[str, object]] = [{"type": "CvtColor", "code": "COLOR_RGB2BGR"}] if self.bgr else []
        return [
            {"type": "DecodeImage"},
            *resize,
            {"type": "CenterCrop", "crop_size": height if height == width else [height, width]},
            *exchange,
            _normalize(self.mean, self.std),
            {"type": "ToTensor"},
        ]

    def __str__(self) -> str:
        crop = self.crop_hw[0] if self.crop_hw[0] == self.crop_hw[1] else list(self.crop_hw)
        size = list(self.resize) if isinstance(self.resize, tuple) else self.resize
        how = self.interpolation.removesuffix("_PILLOW").lower()
        resized = "no Resize" if size is None else f"Resize {size} ({how})"
        return (
            f"{resized}, CenterCrop {crop}, mean {_shown(self.mean)}, std {_shown(self.std)}"
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
    """Return the recipe of timm's `pretrained_cfg`, as timm's own evaluation transforms read it, defaults included.

    Args:
        source: for people, and for errors.

    Raises:
        ConfigError: it asks for something that build files cannot say.
    """
    record = completed(record, _TIMM_USUAL)
    _, height, width = integers(record, "input_size", (3, 224, 224), source)
    share = float(number(record.get("crop_pct") or 0.875, source))
    mode = record.get("crop_mode") or "center"
    scaled = (math.floor(height / share), math.floor(width / share))
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise ConfigError(f"{source}: crop_mode {mode!r} at {height}x{width} px: write process_ops for it by hand")
    resize = scaled[0] if mode == "center" else scaled
    check_crop((height, width), resize, source)
    return Recipe(
        crop_hw=(height, width),
        resize=resize,
        interpolation=pillow_filter(record["interpolation"], source),
        mean=numbers(record, "mean", source),
        std=numbers(record, "std", source),
        source=source,
        classes=_whole(record.get("num_classes")),
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
