"""The embedded sample: generated photographs of 1000 textures, for machines without ImageNet.

A class is two coloured waves over a base colour, each wave with its own angle, frequency and shape. The images of a
class differ in phase, angle, frequency, light, noise and size, so that neighbouring classes overlap a little and a
network that loses precision loses accuracy. Frequencies are in cycles per shorter side: a preprocessing that resizes
the shorter side gives the same texture whatever the size of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.host.hardware import available_cores
from pipeline.host.worker_pool import run_in_workers
from pipeline.terminal.progress import progress_bar

SAMPLE_CLASSES = 1000
SPLITS = ("calibration", "evaluation")  # the position is part of an image's seed

_SPANS = {"calibration": (0.0, 0.67), "evaluation": (0.67, 1.0)}  # of the progress of making both

CLASS_SEED = 20
JPEG_QUALITY = 90
CLASSES_PER_TASK = 10  # keeps the progress bar moving without a message per image

SHAPES = ("ripple", "bars", "ridge")
SHORT_SIDE_PX = (288, 336)
MAX_ASPECT = 1.06  # a resize that ignores the aspect ratio then turns an angle by less than two degrees
CYCLES = (10.0, 56.0)  # per shorter side: at 256 px, periods of 25 to 4.6 px
BASE_LEVEL = (80.0, 176.0)  # of 255, each colour channel
WAVE_LEVEL = 60.0  # of 255, length of a wave's colour vector

# Variation within a class: standard deviations.
ANGLE_JITTER_DEG = 2.4
CYCLES_JITTER = 0.03  # relative
LIGHT_JITTER = 0.06  # relative gain of the whole image
CAST_JITTER = 0.012  # relative gain of a colour channel
CONTRAST_JITTER = 0.096  # relative amplitude of a wave
SHADE_JITTER = 0.06  # relative gain from one edge to the other
NOISE_LEVEL = 12.0  # of 255, each pixel


@dataclass(frozen=True, kw_only=True)
class Wave:
    """One periodic pattern."""

    angle_deg: float  # direction of travel, in [0, 180)
    cycles: float  # per shorter side
    shape: str  # one of SHAPES
    colour: tuple[float, float, float]  # RGB amplitude, of 255


@dataclass(frozen=True, kw_only=True)
class Texture:
    """What the images of a class have in common."""

    base: tuple[float, float, float]  # RGB, of 255
    waves: tuple[Wave, Wave]


def class_texture(class_index: int) -> Texture:
    """Return the texture of a class; the same on every machine."""
    if not 0 <= class_index < SAMPLE_CLASSES:
        raise ValueError(f"class index: must be in [0, {SAMPLE_CLASSES}), got {class_index}")
    rng = np.random.default_rng((CLASS_SEED, class_index))
    red, green, blue = rng.uniform(*BASE_LEVEL, size=3)
    return Texture(base=(red, green, blue), waves=(_draw_wave(rng), _draw_wave(rng)))


def sample_image(class_index: int, image_index: int, split: str) -> Image.Image:
    """Return one RGB image of a class, shorter side within SHORT_SIDE_PX; the same arguments give the same pixels.

    Raises:
        ValueError: no such class or split.
    """
    if split not in SPLITS:
        raise ValueError(f"split: must be one of {', '.join(SPLITS)}, got {split!r}")
    texture = class_texture(class_index)
    rng = np.random.default_rng((CLASS_SEED, class_index, SPLITS.index(split), image_index))
    width, height = _draw_size(rng)
    x = _pixel_positions(width, height)[None, :]
    y = _pixel_positions(height, width)[:, None]
    # Planes, not pixels: products along a last axis of length 3 are several times slower in numpy.
    planes = np.empty((3, height, width), np.float32)
    planes[:] = _per_plane(texture.base)
    for wave in texture.waves:
        planes += _wave_field(wave, x, y, rng) * _per_plane(wave.colour)
    planes *= _shade(x, y, rng) * _per_plane(rng.normal(rng.normal(1, LIGHT_JITTER), CAST_JITTER, size=3))
    planes += NOISE_LEVEL * rng.standard_normal((height, width), np.float32)
    pixels = np.clip(planes, 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def class_folder(class_index: int) -> str:
    """Return the folder name of a class; sorted folder names are in class order."""
    return f"sample{class_index:04d}"


def sample_class_names() -> list[str]:
    """Return one readable name per class, such as `sample 0007: 31 deg ripple x22, 104 deg bars x45`."""
    return [f"sample {index:04d}: {_describe(class_texture(index))}" for index in range(SAMPLE_CLASSES)]


def write_sample(folder: Path, split: str, classes: Sequence[int] = range(SAMPLE_CLASSES)) -> None:
    """Write an image of each class as `<folder>/<class folder>/<class folder>_0.JPEG`, on all cores."""
    written = run_in_workers(
        partial(_write_classes, folder, split),
        classes,
        chunk=CLASSES_PER_TASK,
        workers=available_cores(),
        name="sample",
        hint="run the same command again",
    )
    with closing(written), progress_bar(len(classes), f"{split} images", "img", span=_SPANS[split]) as progress:
        for count in written:
            progress.update(count)


def _write_classes(folder: Path, split: str, classes: Sequence[int]) -> int:
    for class_index in classes:
        name = class_folder(class_index)
        (folder / name).mkdir(parents=True, exist_ok=True)
        sample_image(class_index, 0, split).save(folder / name / f"{name}_0.JPEG", quality=JPEG_QUALITY)
    return len(classes)


def _draw_wave(rng: np.random.Generator) -> Wave:
    low, high = np.log(CYCLES)
    colour = rng.standard_normal(3)
    red, green, blue = WAVE_LEVEL * colour / np.linalg.norm(colour)
    return Wave(
        angle_deg=rng.uniform(0, 180),
        cycles=float(np.exp(rng.uniform(low, high))),
        shape=SHAPES[rng.integers(len(SHAPES))],
        colour=(red, green, blue),
    )


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """Return (width, height) in pixels, landscape or portrait."""
    short = int(rng.integers(*SHORT_SIDE_PX, endpoint=True))
    long = round(short * rng.uniform(1, MAX_ASPECT))
    return (long, short) if rng.integers(2) else (short, long)


def _pixel_positions(side_px: int, other_px: int) -> NDArray[np.float32]:
    """Return float32 [side_px], each pixel's place along its side, in shorter sides."""
    positions: NDArray[np.float32] = np.arange(side_px, dtype=np.float32) / np.float32(min(side_px, other_px))
    return positions


def _per_plane(rgb: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float32]:
    """Return float32 [3, 1, 1], to combine with planes."""
    return np.asarray(rgb, np.float32)[:, None, None]


def _wave_field(
    wave: Wave, x: NDArray[np.float32], y: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return float32 [H, W], about -1 to 1: the wave at a drawn phase; angle, frequency and contrast slightly off.

    Args:
        x: float32 [1, W], in shorter sides.
        y: float32 [H, 1], in shorter sides.
    """
    angle = np.deg2rad(wave.angle_deg + rng.normal(0, ANGLE_JITTER_DEG))
    turns = 2 * np.pi * wave.cycles * rng.normal(1, CYCLES_JITTER)
    along_x, along_y, phase = np.array([turns * np.cos(angle), turns * np.sin(angle), rng.uniform(0, 2 * np.pi)], "f4")
    swing: NDArray[np.float32] = np.sin(along_x * x + (along_y * y + phase))
    if wave.shape == "bars":
        swing = np.clip(3 * swing, -1, 1)
    elif wave.shape == "ridge":
        swing = 2 * np.square(np.square(swing)) - 1
    swing *= np.float32(rng.normal(1, CONTRAST_JITTER))
    return swing


def _shade(x: NDArray[np.float32], y: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return float32 [H, W], around 1: a gain that grows from one edge to the other."""
    slope_x, slope_y = rng.normal(0, SHADE_JITTER, size=2).astype(np.float32)
    shade: NDArray[np.float32] = 1 + slope_x * (x - x.mean()) + slope_y * (y - y.mean())
    return shade


def _describe(texture: Texture) -> str:
    return ", ".join(f"{wave.angle_deg:.0f} deg {wave.shape} x{wave.cycles:.0f}" for wave in texture.waves)
