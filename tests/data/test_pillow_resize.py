"""pillow_resize.py against Pillow's own resize and crop, one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.config.vdsp import ResizeFilter
from pipeline.data import pillow_resize
from pipeline.data.pillow_resize import FILTERS, find_span, resize_and_crop

# Among them some that Pillow 13 resizes rows first as a part, and columns first as a whole.
SIZES = [(299, 299), (375, 500), (500, 333), (256, 256), (256, 300), (64, 80), (1024, 683), (37, 4001), (225, 257)]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillow_resize, "_known", {})


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes that Pillow is asked for, as they come."""
    asked: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def noting(image: Image.Image, size: tuple[int, int], *args: object, **kwargs: object) -> Image.Image:
        asked.append(size)
        return resize(image, size, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", noting)
    return asked


def noise(height: int, width: int, seed: int) -> Image.Image:
    """Independent pixels: every rounding shows."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("resize_filter", list(FILTERS))
@pytest.mark.parametrize("hw", SIZES)
def test_resize_and_crop_equals_pillow_when_sizes_vary(hw: tuple[int, int], resize_filter: ResizeFilter) -> None:
    for size in (256, 224):
        scale = size / min(hw)
        full_hw = (size, int(hw[1] * scale)) if hw[0] <= hw[1] else (int(hw[0] * scale), size)
        for top, left in [(16, 16), (0, full_hw[1] - 200), (full_hw[0] - 200, 3)]:
            for seed in range(3):  # the whole, the trial, what it decided
                image = noise(*hw, seed)
                whole = image.resize((full_hw[1], full_hw[0]), FILTERS[resize_filter])
                expected = whole.crop((left, top, left + 200, top + 200))
                got = resize_and_crop(image, resize_filter, full_hw, (top, left), (200, 200))
                np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


@pytest.mark.parametrize(
    ("hw", "full_hw", "corner", "part"),
    [
        ((299, 299), (256, 256), (16, 16), (224, 224)),
        ((375, 500), (256, 341), (16, 58), (341, 224)),  # 500 / 341 has no end in bits
    ],
)
def test_resize_and_crop_lets_pillow_compute_the_crop_only_when_the_size_comes_again(
    hw: tuple[int, int],
    full_hw: tuple[int, int],
    corner: tuple[int, int],
    part: tuple[int, int],
    sizes: list[tuple[int, int]],
) -> None:
    for seed in range(4):
        resize_and_crop(noise(*hw, seed), ResizeFilter.BILINEAR_PILLOW, full_hw, corner, (224, 224))
    whole = full_hw[::-1]
    assert sizes == [whole, part, whole, part, part, part]  # the trial is the second and the third


def test_resize_and_crop_takes_the_whole_when_pillow_computes_the_part_otherwise(
    monkeypatch: pytest.MonkeyPatch, sizes: list[tuple[int, int]]
) -> None:
    part = pillow_resize._resize_part

    def shifted(image: Image.Image, geometry: pillow_resize.Geometry) -> Image.Image:
        return part(image, geometry).point(lambda value: value ^ 1)

    monkeypatch.setattr(pillow_resize, "_resize_part", shifted)
    for seed in range(3):
        resize_and_crop(noise(299, 299, seed), ResizeFilter.BILINEAR_PILLOW, (256, 256), (16, 16), (224, 224))
    assert sizes == [(256, 256), (224, 224), (256, 256), (256, 256), (256, 256)]


def test_resize_and_crop_tries_nothing_when_images_are_large(
    monkeypatch: pytest.MonkeyPatch, sizes: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(pillow_resize, "_MOST_TRIED", 299 * 299 - 1)
    for seed in range(3):
        resize_and_crop(noise(299, 299, seed), ResizeFilter.BILINEAR_PILLOW, (256, 256), (16, 16), (224, 224))
    assert sizes == [(256, 256)] * 3


def test_resize_and_crop_forgets_no_size_and_learns_no_more_than_it_may(
    monkeypatch: pytest.MonkeyPatch, sizes: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(pillow_resize, "_MOST_KNOWN", 1)
    for side in (299, 300, 299, 300):
        resize_and_crop(noise(side, side, 0), ResizeFilter.BILINEAR_PILLOW, (256, 256), (16, 16), (224, 224))
    assert sizes == [(256, 256), (256, 256), (224, 224), (256, 256), (224, 224), (256, 256)]


def test_find_span_is_the_part_of_the_image_when_the_scale_has_few_bits() -> None:
    assert find_span(299, 256, 16, 224) == (299 / 16, 299 * 15 / 16)
    assert find_span(232 * 3, 232, 4, 224) == (12.0, 684.0)  # 3 / 1


@pytest.mark.parametrize(("length", "full"), [(299, 232), (256, 256), (2**18 + 1, 256)])
def test_find_span_is_none_when_float32_would_round_or_nothing_is_resized(length: int, full: int) -> None:
    assert find_span(length, full, 4, 224) is None
