"""quick_jpeg.py against Pillow, by `preprocess.load` with and without it: the same pixels, or the same error."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config.choices import PreprocessAs
from pipeline.config.vdsp import PreprocessSpec, ResizeFilter, ResizeMode
from pipeline.data import preprocess, quick_jpeg
from pipeline.data.quick_jpeg import QuickJpegs, find_quick_jpegs
from pipeline.errors import DataError

pytest.importorskip("numba", reason="needs the extra fast")
simplejpeg = pytest.importorskip("simplejpeg", reason="needs the extra fast")

SHARED = Path(__file__).parents[3] / "shared" / "data"
SPEC = PreprocessSpec(
    resize=ResizeMode.SHORTER_SIDE,
    resize_hw=(64, 64),
    filter=ResizeFilter.BILINEAR_PILLOW,
    crop_hw=(56, 48),
    crop_yx=None,
    synthetic_hw=(64, 64),
)


@pytest.fixture
def quick() -> QuickJpegs:
    """One that has seen no image."""
    return QuickJpegs()


@pytest.fixture
def decoded(quick: QuickJpegs, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes in bytes of the files that were decoded quickly."""
    sizes: list[int] = []
    decode = quick._decode

    def noting(content: bytes, hw: tuple[int, int]) -> Any:
        pixels = decode(content, hw)
        if pixels is not None:
            sizes.append(len(content))
        return pixels

    monkeypatch.setattr(quick, "_decode", noting)
    yield sizes


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Colours that change smoothly, with noise."""
    ramp = np.linspace(0, 200, height * width * 3).reshape(height, width, 3)
    noise = np.random.default_rng(seed).integers(0, 56, (height, width, 3))
    return Image.fromarray((ramp + noise).astype(np.uint8))


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def outcome(spec: PreprocessSpec, content: bytes, quick: QuickJpegs | None) -> np.ndarray | str:
    """Return the pixels, or the error's text."""
    try:
        return preprocess.load(spec, content, raw=True, quick=quick)
    except DataError as err:
        return str(err)


def check(content: bytes, quick: QuickJpegs, spec: PreprocessSpec = SPEC) -> None:
    """Compare what comes of a file: when its size is new, by the trial, and after it."""
    expected = outcome(spec, content, None)
    for _ in range(3):
        np.testing.assert_array_equal(outcome(spec, content, quick), expected)


def _encoded(subsampling: str, image: Image.Image) -> bytes:
    made: bytes = simplejpeg.encode_jpeg(np.asarray(image).copy(), quality=90, colorsubsampling=subsampling)
    return made


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


SIZES = [(64, 64), (75, 100), (130, 66), (90, 231), (64, 65), (233, 57), (1, 1)]
FILES: dict[str, Callable[[Image.Image], bytes]] = {
    **{each: partial(_encoded, each) for each in ("444", "422", "420", "440", "411")},
    "quality 1": lambda image: saved(image, quality=1),
    "quality 100": lambda image: saved(image, quality=100, subsampling=0),
    "optimized": lambda image: saved(image, optimize=True),
    "restart markers": lambda image: saved(image, restart_marker_blocks=3),
    "RGB in place of YCbCr": lambda image: saved(image, keep_rgb=True),
    "EXIF turned": lambda image: saved(image, exif=_exif()),
    "a comment and a profile": lambda image: saved(image, comment=b"text", icc_profile=b"no profile" * 100),
    "bytes behind it": lambda image: saved(image) + b"more" * 1000,
    "two pictures": lambda image: saved(image, "MPO", save_all=True, append_images=[image]),
}


@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
@pytest.mark.parametrize("resize_filter", [ResizeFilter.BILINEAR_PILLOW, ResizeFilter.BICUBIC_PILLOW])
def test_load_equals_pillow_and_is_quick_when_the_size_comes_again(
    write: Callable[[Image.Image], bytes], resize_filter: ResizeFilter, quick: QuickJpegs, decoded: list[int]
) -> None:
    for seed, hw in enumerate(SIZES):
        check(write(photo(*hw, seed)), quick, replace(SPEC, filter=resize_filter))
        assert len(decoded) == 2 * (seed + 1)


SLOW_FILES = {
    "progressive": saved(photo(75, 100), progressive=True),
    "grey": saved(photo(75, 100).convert("L")),
    "CMYK": saved(photo(75, 100).convert("CMYK")),
    "PNG": saved(photo(75, 100), "PNG"),
    "WebP": saved(photo(75, 100), "WEBP"),
}


@pytest.mark.parametrize("content", SLOW_FILES.values(), ids=SLOW_FILES)
def test_load_leaves_other_kinds_to_pillow(content: bytes, quick: QuickJpegs, decoded: list[int]) -> None:
    check(content, quick)
    assert not decoded


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, filter=ResizeFilter.LANCZOS_PILLOW),
        replace(SPEC, filter=ResizeFilter.BILINEAR_CV),
        replace(SPEC, preprocess_as=PreprocessAs.PADDLECLAS),
    ],
)
def test_load_leaves_other_preprocessing_to_pillow(spec: PreprocessSpec, quick: QuickJpegs, decoded: list[int]) -> None:
    check(saved(photo(75, 100)), quick, spec)
    assert not decoded


def test_load_equals_pillow_when_files_are_cut_or_damaged(quick: QuickJpegs, decoded: list[int]) -> None:
    whole = saved(photo(75, 100), restart_marker_blocks=2)
    check(whole, quick)
    random = np.random.default_rng(0)
    for cut in (*range(2, len(whole), 97), len(whole) - 2, len(whole) - 1):
        check(whole[:cut], quick)
    for _ in range(200):
        damaged = bytearray(whole)
        for place in random.integers(20, len(whole), 2):
            damaged[place] = random.integers(0, 256)
        check(bytes(damaged), quick)
    assert decoded


def test_load_equals_pillow_when_the_image_is_too_small_for_its_crop(quick: QuickJpegs) -> None:
    spec = replace(SPEC, resize=ResizeMode.NONE, resize_hw=None)
    for content in (saved(photo(20, 30)), saved(photo(20, 30))[:500], saved(photo(64, 80))):
        check(content, quick, spec)


def test_load_equals_pillow_when_it_resizes_otherwise(
    quick: QuickJpegs, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick_jpeg, "_resize", lambda pixels, geometry, order: np.zeros((3, 56, 48), np.uint8))
    check(saved(photo(75, 100)), quick)
    assert len(decoded) == 1  # the trial's


def test_load_learns_no_more_sizes_than_it_may(
    quick: QuickJpegs, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick_jpeg, "_MOST_KNOWN", 1)
    for width, count in ((100, 2), (99, 2), (100, 5)):
        check(saved(photo(75, width)), quick)
        assert len(decoded) == count


def test_load_learns_nothing_from_an_image_of_one_colour(quick: QuickJpegs, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    find = quick_jpeg._find_order

    def noting(*args: Any) -> Any:
        tried.append(find(*args))
        return tried[-1]

    monkeypatch.setattr(quick_jpeg, "_find_order", noting)
    for image in (Image.new("RGB", (100, 75), "teal"), photo(75, 100), photo(75, 100, 1)):
        check(saved(image), quick)
    assert [each.name for each in tried] == ["SEEN_ONCE", "SEEN_ONCE", "ROWS_FIRST"]


def test_find_quick_jpegs_finds_nothing_when_libraries_decode_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(find_quick_jpegs(), QuickJpegs)
    find_quick_jpegs.cache_clear()
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(
        simplejpeg, "decode_jpeg", lambda *args, **kwargs: decode(*args, **kwargs, fastdct=True, fastupsample=True)
    )
    assert find_quick_jpegs() is None
    find_quick_jpegs.cache_clear()


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_load_equals_pillow_for_photos(quick: QuickJpegs) -> None:
    spec = replace(SPEC, resize_hw=(256, 256), crop_hw=(224, 224))
    for path in sorted(SHARED.glob("*/*/*.JPEG"))[::10]:
        check(path.read_bytes(), quick, spec)
