"""Reading the values of timm's and transformers' records of how images are prepared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.errors import ConfigError

Numbers = tuple[float, ...]

BY_HAND = "move the file away, and change what init writes"
_CHANNELS = 3
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


def completed(record: Mapping[str, object], usual: Mapping[str, object]) -> dict[str, object]:
    """Return a record with what is usual in the place of what it does not say."""
    return {**usual, **{key: value for key, value in record.items() if value not in (None, "")}}


def check_crop(crop_hw: tuple[int, int], resize: int | tuple[int, int] | None, source: str) -> None:
    """Raise ConfigError for a crop that is larger than what is resized, which the libraries pad with black."""
    resized = (resize, resize) if isinstance(resize, int) else resize
    if resized is not None and (crop_hw[0] > resized[0] or crop_hw[1] > resized[1]):
        shown = f"crops {crop_hw[0]}x{crop_hw[1]} px of images of {resized[0]}x{resized[1]}"
        raise ConfigError(f"{source}: {shown}, which pads them, and process_ops cannot say that: {BY_HAND}")


def pillow_filter(value: object, source: str) -> str:
    name = _FILTER_NUMBERS.get(value) if isinstance(value, int) else str(value)
    if name not in _FILTERS:
        raise ConfigError(f"{source}: interpolation {value!r}; known are {', '.join(_FILTERS)}")
    return _FILTERS[name]


def number(value: object, source: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise ConfigError(f"{source}: expected a number, got {value!r}")


def numbers(record: Mapping[str, object], key: str, source: str) -> Numbers:
    """Return a number for each channel; one number is that of all, as the libraries take it."""
    value = record.get(key)
    value = [value] if isinstance(value, int | float) else value
    if not isinstance(value, Sequence) or not value or isinstance(value, str):
        raise ConfigError(f"{source}: {key} is {value!r}, wanted a number for each channel")
    numbers = tuple(number(each, source) for each in value)
    return numbers * _CHANNELS if len(numbers) == 1 else numbers


def integers(record: Mapping[str, object], key: str, default: tuple[int, ...], source: str) -> tuple[int, ...]:
    value = record.get(key, default)
    if not isinstance(value, Sequence) or len(value) != len(default):
        raise ConfigError(f"{source}: {key} is {value!r}, wanted {len(default)} numbers")
    return tuple(int(number(each, source)) for each in value)
