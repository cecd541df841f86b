"""compiled_resize.py against Pillow's own resize and crop."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.config.vdsp import ResizeFilter
from pipeline.data import compiled_resize
from pipeline.data.compiled_resize import find_taps, is_known, resize_and_crop
from pipeline.data.pillow_resize import FILTERS

Pair = tuple[int, int]
Bytes = npt.NDArray[np.uint8]

# Of an image; after the resize; corner and size of the crop.
SMALL = [
    ((13, 17), (8, 10), (1, 2), (6, 7)),  # both shorter
    ((9, 7), (14, 15), (3, 0), (8, 15)),  # both longer
    ((12, 5), (6, 9), (0, 1), (6, 6)),
    ((5, 12), (9, 6), (2, 0), (5, 6)),
    ((7, 7), (7, 4), (0, 0), (7, 4)),  # rows only
    ((1, 1), (3, 4), (0, 0), (3, 4)),
]
LARGE = [
    ((299, 299), (256, 256), (16, 16), (224, 224)),
    ((500, 375), (341, 256), (58, 16), (224, 224)),
    ((333, 500), (256, 384), (0, 160), (256, 224)),
    ((64, 80), (256, 320), (32, 96), (192, 128)),
    ((1024, 683), (224, 224), (0, 0), (224, 224)),
]
KNOWN = [each for each in FILTERS if is_known(each)]


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same functions as Python runs them."""
    steps = (compiled_resize.resize_rows, compiled_resize.resize_columns, compiled_resize.split_channels)
    monkeypatch.setattr(compiled_resize, "_compiled", lambda: steps)


def noise(hw: Pair, seed: int) -> Bytes:
    """uint8 [H, W, 4]; of the second seed black and white only, whose sums go beyond 0 and 255."""
    values = np.random.default_rng(seed).integers(0, 256, (*hw, 4), dtype=np.uint8)
    return values if seed == 0 else (values > 127).astype(np.uint8) * np.uint8(255)


def check(hw: Pair, full_hw: Pair, corner: Pair, crop_hw: Pair, resize_filter: ResizeFilter, seed: int) -> None:
    """Compare one of the two orders with Pillow, which has no switch for it."""
    values = noise(hw, seed)
    whole = Image.fromarray(values[..., :3].copy()).resize(full_hw[::-1], FILTERS[resize_filter])
    (top, left), (tall, wide) = corner, crop_hw
    expected = np.moveaxis(np.asarray(whole)[top : top + tall, left : left + wide], 2, 0)
    packed = values.reshape(hw[0], -1).view(np.uint32)
    got = [
        resize_and_crop(packed, resize_filter, full_hw, corner, crop_hw, rows_first=first) for first in (True, False)
    ]
    assert all(each.dtype == np.uint8 and each.shape == (3, *crop_hw) for each in got)
    assert any(np.array_equal(each, expected) for each in got)


@pytest.mark.parametrize("resize_filter", KNOWN)
@pytest.mark.parametrize("sizes", SMALL)
def test_resize_and_crop_equals_pillow_when_it_is_not_compiled(
    sizes: tuple[Pair, Pair, Pair, Pair], resize_filter: ResizeFilter, uncompiled: None
) -> None:
    for seed in (0, 1):
        check(*sizes, resize_filter, seed)


@pytest.mark.parametrize("resize_filter", KNOWN)
@pytest.mark.parametrize("sizes", SMALL + LARGE)
def test_resize_and_crop_equals_pillow_when_it_is_compiled(
    sizes: tuple[Pair, Pair, Pair, Pair], resize_filter: ResizeFilter
) -> None:
    pytest.importorskip("numba", reason="needs the extra fast")
    for seed in (0, 1):
        check(*sizes, resize_filter, seed)


def test_resize_and_crop_takes_strips_of_any_height(monkeypatch: pytest.MonkeyPatch, uncompiled: None) -> None:
    monkeypatch.setattr(compiled_resize, "_STRIP", 4)
    check((13, 17), (8, 10), (0, 0), (8, 10), ResizeFilter.BICUBIC_PILLOW, 0)


def test_is_known_leaves_filters_to_pillow_whose_weights_are_not_of_whole_numbers() -> None:
    assert KNOWN == [ResizeFilter.BILINEAR_PILLOW, ResizeFilter.BICUBIC_PILLOW]


def test_find_taps_sums_to_one_within_the_image() -> None:
    taps = find_taps(299, 256, 16, 224, ResizeFilter.BICUBIC_PILLOW)
    assert (abs(taps.weights.sum(axis=1) - 2**22) <= len(taps.weights[0])).all()
    # Two pixels of the result on either side of its first and last.
    assert taps.span == slice(round(14.5 * 299 / 256), round(241.5 * 299 / 256))
    assert taps.first[0] == 0 and taps.first[-1] + len(taps.weights[-1]) <= 282 - 17
    assert find_taps(8, 8, 2, 3, ResizeFilter.BILINEAR_PILLOW).weights.max(axis=1).tolist() == [2**22] * 3
