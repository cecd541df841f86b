"""Images -> network input: the one preprocessing that calibration, the runner and prediction share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.config.choices import PreprocessAs
from pipeline.config.vdsp import ColourOrder, PreprocessSpec, ResizeFilter, ResizeMode, centre_offset
from pipeline.data.bilinear_cv import bilinear_cv
from pipeline.data.bit_depth import has_16_bits, largest_if_dark
from pipeline.data.jpeg_header import find_plain_hw
from pipeline.data.opening import check_pixels, decoding, opened
from pipeline.data.pillow_resize import FILTERS, Geometry, resize_and_crop
from pipeline.data.quick_jpeg import QuickJpegs, is_usual_jpeg
from pipeline.errors import DataError

Pixels = NDArray[np.uint8]
Prepared = NDArray[np.float32 | np.uint8]

# What OpenCV 5 turns; TIFF is turned by Pillow as well.
_TURNED_FORMATS = frozenset({"JPEG", "MPO", "PNG", "WEBP"})
_ORIENTATION = 0x0112  # of EXIF, 1 to 8
_TURNS: Mapping[object, Callable[[Pixels], Pixels]] = {  # of [H, W, 3]
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: image.transpose(1, 0, 2)[:, ::-1],
    7: lambda image: image.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda image: image.transpose(1, 0, 2)[::-1],
}


def decode(source: Path | bytes, preprocess_as: PreprocessAs = PreprocessAs.TORCHVISION) -> Pixels:
    """Decode an image file exactly as Pillow's `Image.open(source).convert("RGB")` does, but for 16 bits per pixel.

    Of those, which Pillow cuts off at 255, the upper 8 are taken.

    Args:
        source: a file, or its bytes.
        preprocess_as: whether an image is turned as its EXIF says. torchvision's loader, which gave the published
            numbers of most networks, does not turn; OpenCV, by which PaddleClas decodes, turns JPEG, PNG and WebP,
            and transformers what Pillow's `exif_transpose` turns.

    Returns:
        uint8 [3, H, W], RGB, C-contiguous.

    Raises:
        DataError: as `opening.opened`; the file is damaged or cut short.
    """
    with opened(source) as image:
        return _to_chw(image, preprocess_as)


def check(source: Path | bytes) -> int | None:
    """Raise what `decode` raises for an image file, in half the time: the pixels stay where Pillow has them.

    Returns:
        The largest value of an image of 16 bits that holds no more than 12 of them (see `bit_depth`), else None.
    """
    with opened(source) as image:
        is_deep = has_16_bits(image)
        image.load()
        if image.mode != "RGB":
            _to_chw(image, PreprocessAs.TORCHVISION)
        return largest_if_dark(image) if is_deep else None


def from_pillow(image: Image.Image, preprocess_as: PreprocessAs = PreprocessAs.TORCHVISION) -> Pixels:
    """Return the pixels of an image that Pillow has opened or made, as `decode` returns those of its file.

    Args:
        image: of any mode; only read. One that was opened and not loaded yet is loaded.
        preprocess_as: as of `decode`.

    Returns:
        uint8 [3, H, W], RGB, C-contiguous.

    Raises:
        DataError: as `decode`.
    """
    with decoding("image"):
        check_pixels("image", image.width, image.height)
        return _to_chw(image, preprocess_as)


def _to_chw(image: Image.Image, preprocess_as: PreprocessAs) -> Pixels:
    image_hwc = _rgb(image)
    if preprocess_as is PreprocessAs.PADDLECLAS and image.format in _TURNED_FORMATS:
        image_hwc = _turned(image_hwc, lambda: _exif_chunk(image))
    if preprocess_as is PreprocessAs.TRANSFORMERS:
        image_hwc = _turned(image_hwc, image.getexif)
    return np.ascontiguousarray(image_hwc.transpose(2, 0, 1))


def _exif_chunk(image: Image.Image) -> Image.Exif:
    """Return what OpenCV reads; Pillow's `getexif` takes an orientation from XMP too."""
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return exif


def _rgb(image: Image.Image) -> Pixels:
    """Return uint8 [H, W, 3]."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # Pillow before 11 says "I"
        grey = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("F", "I"):
        _check_range(image)
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.copy()
        del image.info["transparency"]  # which is left out anyway, and which Pillow warns of
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _check_range(image: Image.Image) -> None:
    """Raise ValueError for numbers of 32 bits that are no pixels: Pillow would make them all black or all white."""
    lowest, highest = (float(extreme) for extreme in image.getextrema())  # type: ignore[arg-type]  # of one band
    of_share = image.mode == "F" and 0 < highest <= 1
    if of_share or highest > 255 or lowest < 0:
        raise ValueError(f"it holds numbers from {lowest:.6g} to {highest:.6g}, wanted 0 to 255; save it as 8 bits")


def _turned(image_hwc: Pixels, read_exif: Callable[[], Image.Exif]) -> Pixels:
    """Return the image as EXIF says; as it is where that is damaged, as OpenCV does."""
    try:
        turn = _TURNS.get(read_exif().get(_ORIENTATION))
    except Exception:  # a dozen types, as with damaged images
        return image_hwc
    return image_hwc if turn is None else turn(image_hwc)


def apply(spec: PreprocessSpec, image_chw: Pixels) -> NDArray[np.float32]:
    """Resize, crop and normalise one image.

    Args:
        image_chw: uint8 [3, H, W], RGB, of any size.

    Returns:
        float32 [3, *spec.output_hw], C-contiguous: (x / 255 - mean) / std, channels in the order of `spec.colour`.

    Raises:
        DataError: another dtype or shape; an image smaller than the crop of a spec that does not resize (torchvision
            would pad it with black); one so long and thin that resizing its shorter side gives more pixels than
            `Image.MAX_IMAGE_PIXELS`.
    """
    return _normalise(spec, _cropped(spec, image_chw))


def prepare(spec: PreprocessSpec, image_chw: Pixels, *, raw: bool) -> Prepared:
    """As `apply`; or if `raw`, uint8 pixels in the model's colour order, for a model that normalises them."""
    return _finish(spec, _cropped(spec, image_chw), raw=raw)


def _finish(spec: PreprocessSpec, cropped_chw: Pixels, *, raw: bool) -> Prepared:
    if not raw:
        return _normalise(spec, cropped_chw)
    return np.ascontiguousarray(cropped_chw if spec.colour is ColourOrder.RGB else cropped_chw[::-1])


def load(spec: PreprocessSpec, source: Path | bytes, *, raw: bool, quick: QuickJpegs | None = None) -> Prepared:
    """Decode an image file and `prepare` it, with the same result in less time: see `_resized_by_pillow`.

    Args:
        quick: takes half of the rest of the time for JPEGs that are given as bytes; Pillow does not open plain ones.
    """
    is_known = spec.preprocess_as is PreprocessAs.TORCHVISION and spec.filter in FILTERS
    if quick is None or isinstance(source, Path) or not is_known:
        return _load_by_pillow(spec, source, raw=raw, is_known=is_known)
    if (hw := find_plain_hw(source)) is not None:
        pixels = _resized_quickly(quick, spec, hw, source, lambda: _open_and_resize(spec, source))
        return _finish(spec, pixels, raw=raw)
    return _load_by_pillow(spec, source, raw=raw, is_known=is_known, quick=quick)


def _load_by_pillow(
    spec: PreprocessSpec, source: Path | bytes, *, raw: bool, is_known: bool, quick: QuickJpegs | None = None
) -> Prepared:
    """Open an image by Pillow and prepare it; `quick` may decode it, which is given for bytes only."""
    with opened(source) as image:
        if image.mode != "RGB" or not is_known:
            return prepare(spec, _to_chw(image, spec.preprocess_as), raw=raw)
        if quick is None or isinstance(source, Path) or not is_usual_jpeg(image):
            return _finish(spec, _resized_by_pillow(spec, image), raw=raw)
        hw = (image.height, image.width)
        pixels = _resized_quickly(quick, spec, hw, source, lambda: _resized_by_pillow(spec, image))
        return _finish(spec, pixels, raw=raw)


def _resized_quickly(
    quick: QuickJpegs, spec: PreprocessSpec, hw: tuple[int, int], content: bytes, by_pillow: Callable[[], Pixels]
) -> Pixels:
    try:
        full_hw, corner = _window(spec, *hw)
    except DataError:  # of an image that is damaged as well, Pillow says that first
        return by_pillow()
    return quick.load(content, Geometry(hw, full_hw, corner, spec.crop_hw, spec.filter), by_pillow)


def _open_and_resize(spec: PreprocessSpec, source: bytes) -> Pixels:
    with opened(source) as image:
        return _resized_by_pillow(spec, image)


def _resized_by_pillow(spec: PreprocessSpec, image: Image.Image) -> Pixels:
    """Return what decoding, resizing and cropping give, uint8 [3, *crop_hw].

    Pillow resizes its own image, and only the crop is copied: three quarters of the time for a JPEG of 300 pixels.
    """
    image.load()
    full_hw, corner = _window(spec, image.height, image.width)
    cropped = resize_and_crop(image, spec.filter, full_hw, corner, spec.crop_hw)
    pixels_chw = np.empty((3, *spec.crop_hw), np.uint8)
    for plane, band in zip(pixels_chw, "RGB", strict=True):  # in half the time of all three and then turning axes
        plane[...] = np.frombuffer(cropped.tobytes("raw", band), np.uint8).reshape(plane.shape)
    return pixels_chw


def _cropped(spec: PreprocessSpec, image_chw: Pixels) -> Pixels:
    if image_chw.dtype != np.uint8 or image_chw.ndim != 3 or image_chw.shape[0] != 3 or 0 in image_chw.shape:
        raise DataError(f"image: expected uint8 [3, H, W], got {image_chw.dtype} {list(image_chw.shape)}")
    return _resize_and_crop(spec, image_chw)


def synthetic(spec: PreprocessSpec, seed: int) -> Pixels:
    """An image of noise, uint8 [3, *spec.synthetic_hw]; the same seed gives the same image."""
    return np.random.default_rng(seed).integers(0, 256, (3, *spec.synthetic_hw), dtype=np.uint8)


def resized_hw(spec: PreprocessSpec, height: int, width: int) -> tuple[int, int]:
    """Size of an image after the resize, as torchvision's `Resize` or PaddleClas's `ResizeImage` has it."""
    if spec.resize_hw is None:
        return height, width
    if spec.resize is ResizeMode.STRETCH:
        return spec.resize_hw
    size = spec.resize_hw[0]
    if spec.preprocess_as is PreprocessAs.PADDLECLAS:
        percent = size / min(height, width)  # in this order, since halves are decided by the last bit
        return round(height * percent), round(width * percent)
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def _window(spec: PreprocessSpec, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size of an image after the resize, and the top left corner of the crop in it."""
    full_hw = resized_hw(spec, height, width)
    check_pixels("image after Resize", full_hw[1], full_hw[0])
    tall, wide = spec.crop_hw
    if tall > full_hw[0] or wide > full_hw[1]:
        raise DataError(f"image: {height} x {width} is smaller than the crop {tall} x {wide} [height x width]")
    room = (full_hw[0] - tall, full_hw[1] - wide)
    return full_hw, spec.crop_yx or (
        centre_offset(room[0], spec.preprocess_as),
        centre_offset(room[1], spec.preprocess_as),
    )


def _resize_and_crop(spec: PreprocessSpec, image_chw: Pixels) -> Pixels:
    """uint8 [3, H, W] -> uint8 [3, *crop_hw], a view where nothing is resized."""
    _, height, width = image_chw.shape
    full_hw, (top, left) = _window(spec, height, width)
    tall, wide = spec.crop_hw
    if full_hw == (height, width):  # every filter is the identity then
        return image_chw[:, top : top + tall, left : left + wide]
    if spec.filter is ResizeFilter.BILINEAR_CV:
        return bilinear_cv(image_chw, full_hw, (top, left), spec.crop_hw)
    pillow_filter = FILTERS[spec.filter]
    resized = np.empty((3, tall, wide), np.uint8)
    # Plane by plane gives exactly what Pillow makes of the interleaved image, in two thirds of the time. Its `box`
    # could skip the rows and columns that are cropped away, but its float32 corners change the rounding.
    for plane, out in zip(image_chw, resized, strict=True):
        full = Image.fromarray(np.ascontiguousarray(plane)).resize((full_hw[1], full_hw[0]), pillow_filter)
        out[...] = np.asarray(full)[top : top + tall, left : left + wide]
    return resized


def _normalise(spec: PreprocessSpec, image_chw: Pixels) -> NDArray[np.float32]:
    """uint8 RGB [3, h, w] -> float32 [3, h, w] as one multiplication and one subtraction in place."""
    ordered = image_chw if spec.colour is ColourOrder.RGB else image_chw[::-1]
    mean, std = np.asarray(spec.mean), np.asarray(spec.std)
    scale = (1.0 / (255.0 * std)).astype(np.float32).reshape(3, 1, 1)
    shift = (mean / std).astype(np.float32).reshape(3, 1, 1)
    batch_item = np.empty(image_chw.shape, np.float32)
    np.multiply(ordered, scale, out=batch_item)
    batch_item -= shift
    return batch_item
