"""preprocess.py against slow references: Pillow's interleaved resize, OpenCV, torchvision's rules by hand."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from pipeline.config.choices import PreprocessAs
from pipeline.config.vdsp import ColourOrder, PreprocessSpec, ResizeFilter, ResizeMode, load_vdsp
from pipeline.data import preprocess
from pipeline.errors import DataError

PILLOW = {
    ResizeFilter.BILINEAR_PILLOW: Image.Resampling.BILINEAR,
    ResizeFilter.BICUBIC_PILLOW: Image.Resampling.BICUBIC,
    ResizeFilter.LANCZOS_PILLOW: Image.Resampling.LANCZOS,
    ResizeFilter.NEAREST_PILLOW: Image.Resampling.NEAREST,
}


class Normalisation(TypedDict):
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# mean 0 and std 1/255: values stay the 0..255 of the pixels, so that differences read in LSB.
RAW: Normalisation = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
IMAGENET: Normalisation = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def shorter_side(size: int, crop: tuple[int, int]) -> PreprocessSpec:
    return PreprocessSpec(
        resize=ResizeMode.SHORTER_SIDE,
        resize_hw=(size, size),
        filter=ResizeFilter.BILINEAR_PILLOW,
        crop_hw=crop,
        crop_yx=None,
        synthetic_hw=(size, size),
    )


def stretch(hw: tuple[int, int], crop: tuple[int, int], corner: tuple[int, int]) -> PreprocessSpec:
    return replace(shorter_side(1, crop), resize=ResizeMode.STRETCH, resize_hw=hw, crop_yx=corner)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [3, H, W]: smooth colours with noise, so that both flat areas and edges are in it."""
    generator = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, height)[:, None] * np.linspace(0.2, 1, width)
    return (ramp + generator.integers(0, 55, (3, height, width))).astype(np.uint8)


def reference(spec: PreprocessSpec, image_chw: np.ndarray) -> np.ndarray:
    """The same in the plainest way: Pillow on the interleaved image, torchvision's sizes, float64."""
    image = Image.fromarray(np.ascontiguousarray(image_chw.transpose(1, 2, 0)))
    width, height = image.size
    assert spec.resize_hw is not None
    if spec.resize is ResizeMode.STRETCH:
        tall, wide = spec.resize_hw
    else:
        size = spec.resize_hw[0]
        short, long = min(width, height), max(width, height)
        tall, wide = (size, int(size * long / short)) if height <= width else (int(size * long / short), size)
    image = image.resize((wide, tall), PILLOW[spec.filter])
    crop_tall, crop_wide = spec.crop_hw
    top, left = spec.crop_yx or (int(round((tall - crop_tall) / 2.0)), int(round((wide - crop_wide) / 2.0)))  # noqa: RUF046
    image = image.crop((left, top, left + crop_wide, top + crop_tall))
    scaled = np.asarray(image, dtype=np.float64) / 255.0
    if spec.colour is ColourOrder.BGR:
        scaled = scaled[..., ::-1]
    return np.moveaxis((scaled - spec.mean) / spec.std, -1, 0)


def jpeg(image_chw: np.ndarray, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image_chw.transpose(1, 2, 0))).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("height_width", [(375, 500), (500, 375), (256, 256), (100, 64), (257, 301), (64, 3000)])
@pytest.mark.parametrize("pillow_filter", list(PILLOW))
def test_apply_matches_reference_when_shorter_side(height_width: tuple[int, int], pillow_filter: ResizeFilter) -> None:
    spec = replace(shorter_side(256, (224, 224)), filter=pillow_filter, **IMAGENET)
    image_chw = picture(*height_width)
    got = preprocess.apply(spec, image_chw)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    assert got.shape == (3, 224, 224)
    np.testing.assert_allclose(got, reference(spec, image_chw), rtol=0, atol=2e-6)


@pytest.mark.parametrize("hw", [(256, 256), (240, 300), (60, 300)])
def test_apply_matches_reference_when_stretched_and_off_centre(hw: tuple[int, int]) -> None:
    spec = replace(stretch(hw, (50, 200), (3, 40)), **IMAGENET)
    image_chw = picture(90, 120)
    np.testing.assert_allclose(preprocess.apply(spec, image_chw), reference(spec, image_chw), rtol=0, atol=2e-6)


def test_apply_exchanges_channels_before_normalising_when_bgr() -> None:
    spec = replace(shorter_side(40, (32, 32)), colour=ColourOrder.BGR, **IMAGENET)
    image_chw = picture(50, 60)
    np.testing.assert_allclose(preprocess.apply(spec, image_chw), reference(spec, image_chw), rtol=0, atol=2e-6)


@pytest.mark.parametrize("crop", [31, 32, 33, 34])
def test_apply_rounds_centre_to_even_when_half(crop: int) -> None:
    spec = replace(shorter_side(35, (crop, crop)), **RAW)
    image_chw = picture(35, 35)
    start = round((35 - crop) / 2.0)
    expected = image_chw[:, start : start + crop, start : start + crop]
    np.testing.assert_allclose(preprocess.apply(spec, image_chw), expected, atol=1e-4)


def test_apply_equals_torchvision_when_installed() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    spec = replace(shorter_side(256, (224, 224)), **IMAGENET)
    image_chw = picture(375, 501)
    steps = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET["mean"], IMAGENET["std"]),
        ]
    )
    expected = steps(Image.fromarray(np.ascontiguousarray(image_chw.transpose(1, 2, 0)))).numpy()
    np.testing.assert_allclose(preprocess.apply(spec, image_chw), expected, atol=2e-6)


@pytest.mark.parametrize("source", [(375, 500), (500, 375), (64, 64), (37, 1), (3, 5)])
@pytest.mark.parametrize("target", [(256, 256), (256, 341), (600, 700), (100, 90), (1, 1)])
def test_apply_is_within_one_lsb_of_opencv_when_bilinear_cv(source: tuple[int, int], target: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    image_chw = np.random.default_rng(0).integers(0, 256, (3, *source), dtype=np.uint8)
    image_hwc = np.ascontiguousarray(image_chw.transpose(1, 2, 0))
    expected = cv2.resize(image_hwc, (target[1], target[0]), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
    spec = replace(stretch(target, target, (0, 0)), filter=ResizeFilter.BILINEAR_CV, **RAW)
    got = np.rint(preprocess.apply(spec, image_chw)).astype(int)
    # Bit for bit on OpenCV's own code; builds with a vendor's HAL round otherwise, hence the one.
    assert abs(got - expected).max() <= 1


def test_apply_gives_the_same_pixels_when_bilinear_cv_crops() -> None:
    whole = replace(stretch((256, 300), (256, 300), (0, 0)), filter=ResizeFilter.BILINEAR_CV, **RAW)
    part = replace(whole, crop_hw=(100, 120), crop_yx=(20, 31))
    image_chw = picture(375, 500)
    expected = preprocess.apply(whole, image_chw)[:, 20:120, 31:151]
    np.testing.assert_array_equal(preprocess.apply(part, image_chw), expected)


def test_apply_bilinear_cv_is_exact_mean_when_halved() -> None:
    image_chw = np.zeros((3, 2, 2), np.uint8)
    image_chw[:, 0, 0] = 200
    spec = replace(stretch((1, 1), (1, 1), (0, 0)), filter=ResizeFilter.BILINEAR_CV, **RAW)
    np.testing.assert_allclose(preprocess.apply(spec, image_chw), np.full((3, 1, 1), 50.0), atol=1e-4)


def test_apply_does_not_touch_its_input_when_nothing_is_resized() -> None:
    image_chw = picture(40, 40)
    before = image_chw.copy()
    image_chw.flags.writeable = False
    preprocess.apply(shorter_side(40, (40, 40)), image_chw)
    np.testing.assert_array_equal(image_chw, before)


def test_apply_takes_views_when_image_is_not_contiguous() -> None:
    image_chw = picture(60, 80)
    spec = shorter_side(40, (32, 32))
    view = np.asfortranarray(image_chw)
    np.testing.assert_array_equal(preprocess.apply(spec, view), preprocess.apply(spec, image_chw))


def test_apply_crops_as_it_is_when_resize_is_none() -> None:
    spec = replace(shorter_side(1, (10, 20)), resize=ResizeMode.NONE, resize_hw=None, **RAW)
    image_chw = picture(20, 41)
    np.testing.assert_allclose(preprocess.apply(spec, image_chw), image_chw[:, 5:15, 10:30], atol=1e-4)


def test_apply_raises_when_image_is_smaller_than_the_crop() -> None:
    spec = replace(shorter_side(1, (10, 20)), resize=ResizeMode.NONE, resize_hw=None)
    with pytest.raises(DataError) as error:
        preprocess.apply(spec, picture(9, 41))
    assert str(error.value) == "image: 9 x 41 is smaller than the crop 10 x 20 [height x width]"


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((3, 4, 4), np.float32), "float32 [3, 4, 4]"),
        (np.zeros((4, 4, 3), np.uint8), "uint8 [4, 4, 3]"),
        (np.zeros((1, 3, 4, 4), np.uint8), "uint8 [1, 3, 4, 4]"),
        (np.zeros((3, 0, 4), np.uint8), "uint8 [3, 0, 4]"),
    ],
)
def test_apply_names_dtype_and_shape_when_image_is_wrong(image: np.ndarray, found: str) -> None:
    with pytest.raises(DataError) as error:
        preprocess.apply(shorter_side(4, (4, 4)), image)
    assert str(error.value) == f"image: expected uint8 [3, H, W], got {found}"


def test_apply_raises_when_a_thin_image_would_fill_memory() -> None:
    with pytest.raises(DataError, match=r"^image after Resize: 25600000 x 256 is more than \d+ pixels$"):
        preprocess.apply(shorter_side(256, (224, 224)), np.zeros((3, 1, 100_000), np.uint8))


def test_decode_equals_pillow_when_file_or_bytes(tmp_path: Path) -> None:
    data = jpeg(picture(33, 47))
    (tmp_path / "a.JPEG").write_bytes(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
    for source in (data, tmp_path / "a.JPEG"):
        got = preprocess.decode(source)
        assert got.dtype == np.uint8
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1"])
def test_decode_gives_rgb_when_image_has_another_mode(mode: str) -> None:
    image = Image.fromarray(picture(8, 9).transpose(1, 2, 0).copy()).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(preprocess.decode(buffer.getvalue()), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_decode_takes_the_upper_bits_when_a_pixel_has_16(kind: str) -> None:
    grey = np.arange(8 * 9, dtype=np.uint16).reshape(8, 9) * 911
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, kind)
    expected = np.broadcast_to(grey // 256, (3, 8, 9))
    np.testing.assert_array_equal(preprocess.decode(buffer.getvalue()), expected)


@pytest.mark.parametrize(
    "data", [b"", b"not an image", jpeg(picture(64, 64))[:600], jpeg(picture(64, 64), "PNG")[:2000]]
)
def test_decode_raises_one_line_when_data_is_damaged(data: bytes) -> None:
    with pytest.raises(DataError) as error:
        preprocess.decode(data)
    assert str(error.value).startswith(f"image of {len(data)} bytes: cannot be decoded as an image: ")
    assert "\n" not in str(error.value)


def test_decode_names_file_when_missing_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    with pytest.raises(DataError) as error:
        preprocess.decode(path)
    assert str(error.value) == f"{path}: no such file"
    path.write_bytes(b"x")
    with pytest.raises(DataError) as error:
        preprocess.decode(path)
    assert str(error.value).startswith(f"{path}: cannot be decoded as an image: ")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer; run git lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which is not read here; convert it"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", r"a film \(MP4 or the like\); write frames of it"),
        (b"\xff\x0a" + bytes(90), "JPEG XL, which is not read here; convert it"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(90), "JPEG XL, which is not read here; convert it"),
        (b"PK\x03\x04" + bytes(90), "a zip archive; unpack it"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML: a drawing"),
        (b'{"message": "not found"}', "text, as a failed download leaves"),
        (bytes(500), "nothing but zeros at its beginning, as a broken copy leaves"),
        (b"\n<!DOCTYPE html><title>404</title>", "an HTML page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a drawing"),
        (b"\x93NUMPY", "of no format that is read here"),
    ],
)
def test_decode_says_what_a_file_is_that_is_no_image(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    for source in (tmp_path / "a.jpg", content):
        with pytest.raises(DataError, match=f": cannot be decoded as an image: it is {what}"):
            preprocess.decode(source)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.linspace(0, 1, 12, dtype=np.float32), "it holds numbers from 0 to 1, wanted 0 to 255"),
        (np.linspace(0, 70000, 12, dtype=np.int32), "it holds numbers from 0 to 70000, wanted 0 to 255"),
        (np.linspace(-1, 1, 12, dtype=np.float32), "it holds numbers from -1 to 1, wanted 0 to 255"),
        (np.linspace(0, 255, 12, dtype=np.float32), None),
        (np.zeros(12, np.float32), None),
    ],
)
def test_decode_refuses_numbers_that_are_no_pixels(
    tmp_path: Path, values: npt.NDArray[np.generic], message: str | None
) -> None:
    """Of TIFF with 32 bits a pixel; Pillow makes those of 0..1 black and larger ones white."""
    Image.fromarray(values.reshape(3, 4)).save(tmp_path / "a.tif")
    if message is None:
        assert (preprocess.decode(tmp_path / "a.tif")[0] == values.reshape(3, 4).astype(np.uint8)).all()
        return
    with pytest.raises(DataError, match=rf"a\.tif: cannot be decoded as an image: {message}"):
        preprocess.decode(tmp_path / "a.tif")


def test_decode_says_nothing_of_a_transparent_palette(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).quantize(8)
    image.save(tmp_path / "a.png", transparency=bytes([0] * 4 + [255] * 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = preprocess.decode(tmp_path / "a.png")
    assert (found.transpose(1, 2, 0) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("limit", [80 * 80 - 1, 80 * 80 // 2 - 1])
def test_decode_raises_when_image_has_too_many_pixels(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(picture(80, 80))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=r"(80 x 80 is more than 6399 pixels|\(6400 pixels\) exceeds limit)"):
        preprocess.decode(data)


def test_synthetic_repeats_when_seed_is_the_same() -> None:
    spec = replace(shorter_side(256, (224, 224)), synthetic_hw=(30, 40))
    first = preprocess.synthetic(spec, 1)
    assert (first.shape, first.dtype) == ((3, 30, 40), np.dtype(np.uint8))
    np.testing.assert_array_equal(first, preprocess.synthetic(spec, 1))
    assert (first != preprocess.synthetic(spec, 2)).any()


def test_apply_gives_the_documented_size_when_spec_is_shipped() -> None:
    spec = load_vdsp("timm-wide_resnet50_2-vdsp_params.json")
    assert preprocess.apply(spec, preprocess.synthetic(spec, 0)).shape == (3, 256, 256)


def paddleclas(size: int, crop: tuple[int, int]) -> PreprocessSpec:
    spec = replace(shorter_side(size, crop), filter=ResizeFilter.BILINEAR_CV, **RAW)
    return replace(spec, preprocess_as=PreprocessAs.PADDLECLAS)


def as_paddleclas(image_hwc: np.ndarray, size: int, crop: int) -> np.ndarray:
    """ResizeImage(resize_short=size) and CropImage(size=crop) of ppcls/data/preprocess/ops/operators.py."""
    import cv2

    img_h, img_w = image_hwc.shape[:2]
    percent = float(size) / min(img_w, img_h)
    w = int(round(img_w * percent))  # noqa: RUF046
    h = int(round(img_h * percent))  # noqa: RUF046
    resized: np.ndarray = cv2.resize(image_hwc, (w, h), interpolation=cv2.INTER_LINEAR)
    w_start, h_start = (w - crop) // 2, (h - crop) // 2
    return resized[h_start : h_start + crop, w_start : w_start + crop, :]


@pytest.mark.parametrize(
    ("hw", "torchvision", "as_paddle"),
    [
        ((375, 500), (256, 341), (256, 341)),  # 341.33
        ((333, 500), (256, 384), (256, 384)),  # 384.38
        ((375, 499), (256, 340), (256, 341)),  # 340.65
        ((499, 375), (340, 256), (341, 256)),
        ((512, 769), (256, 384), (256, 384)),  # 384.5 goes to the even one
        ((512, 771), (256, 385), (256, 386)),  # 385.5
        ((64, 64), (256, 256), (256, 256)),
    ],
)
def test_resized_hw_rounds_the_longer_side_as_paddleclas_and_cuts_it_as_torchvision(
    hw: tuple[int, int], torchvision: tuple[int, int], as_paddle: tuple[int, int]
) -> None:
    assert preprocess.resized_hw(shorter_side(256, (224, 224)), *hw) == torchvision
    assert preprocess.resized_hw(paddleclas(256, (224, 224)), *hw) == as_paddle
    in_transformers = replace(shorter_side(256, (224, 224)), preprocess_as=PreprocessAs.TRANSFORMERS)
    assert preprocess.resized_hw(in_transformers, *hw) == torchvision


@pytest.mark.parametrize(("crop", "starts"), [(31, (2, 2)), (32, (2, 1)), (33, (1, 1)), (34, (0, 0))])
def test_apply_floors_the_corner_as_paddleclas(crop: int, starts: tuple[int, int]) -> None:
    """Of 35 pixels; torchvision's start, of 3 pixels over at 1.5, is 2."""
    image_chw = picture(35, 35)
    ours = replace(shorter_side(35, (crop, crop)), **RAW)
    for spec, start in zip((ours, paddleclas(35, (crop, crop))), starts, strict=True):
        expected = image_chw[:, start : start + crop, start : start + crop]
        np.testing.assert_allclose(preprocess.apply(spec, image_chw), expected, atol=1e-4)


def test_apply_equals_paddleclas_at_every_size() -> None:
    """Within the one step that a vendor's HAL in OpenCV may round otherwise; sizes as of photographs, and odd ones."""
    pytest.importorskip("cv2")
    spec = paddleclas(64, (56, 56))
    sizes = [(75 + step, 100 + 7 * step % 43) for step in range(60)] + [(100, 75), (57, 300), (64, 64), (65, 64)]
    for number, (height, width) in enumerate(sizes):
        image_chw = picture(height, width, number)
        expected = as_paddleclas(np.ascontiguousarray(image_chw.transpose(1, 2, 0)), 64, 56).transpose(2, 0, 1)
        got = np.rint(preprocess.apply(spec, image_chw)).astype(int)
        assert abs(got - expected).max() <= 1, (height, width)


TURNABLE = ["JPEG", "PNG", "WEBP", "MPO"]


def with_orientation(orientation: int, kind: str) -> bytes:
    """A picture of blocks, 24 x 40, with an orientation in EXIF; JPEG keeps it within a few steps."""
    blocks = np.random.default_rng(1).integers(0, 256, (3, 5, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(blocks).save(buffer, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {"quality": 95}))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", TURNABLE)
@pytest.mark.parametrize("orientation", range(1, 10))
def test_decode_turns_by_exif_as_paddleclas_and_not_as_torchvision(orientation: int, kind: str) -> None:
    data = with_orientation(orientation, kind)
    with Image.open(io.BytesIO(data)) as image:
        stored, upright = image.convert("RGB"), ImageOps.exif_transpose(image).convert("RGB")
    np.testing.assert_array_equal(preprocess.decode(data), np.asarray(stored).transpose(2, 0, 1))
    for library in (PreprocessAs.PADDLECLAS, PreprocessAs.TRANSFORMERS):
        turned = preprocess.decode(data, library)
        assert turned.flags.c_contiguous
        np.testing.assert_array_equal(turned, np.asarray(upright).transpose(2, 0, 1))
    assert turned.shape == ((3, 40, 24) if orientation in range(5, 9) else (3, 24, 40))


@pytest.mark.parametrize("kind", ["TIFF", "BMP"])
def test_decode_leaves_other_formats_as_pillow_gives_them_when_as_paddleclas(kind: str) -> None:
    data = with_orientation(6, kind)
    np.testing.assert_array_equal(preprocess.decode(data, PreprocessAs.PADDLECLAS), preprocess.decode(data))


def test_decode_obeys_xmp_as_transformers_and_not_as_paddleclas() -> None:
    """Pillow reads an orientation of XMP where EXIF has none; OpenCV does not."""
    buffer = io.BytesIO()
    xmp = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    Image.fromarray(picture(24, 40).transpose(1, 2, 0)).save(buffer, "WEBP", lossless=True, xmp=xmp)
    assert preprocess.decode(buffer.getvalue(), PreprocessAs.PADDLECLAS).shape == (3, 24, 40)
    assert preprocess.decode(buffer.getvalue(), PreprocessAs.TRANSFORMERS).shape == (3, 40, 24)


@pytest.mark.parametrize("library", [PreprocessAs.PADDLECLAS, PreprocessAs.TRANSFORMERS])
def test_decode_leaves_the_image_as_it_is_when_its_exif_is_damaged(library: PreprocessAs) -> None:
    data = with_orientation(6, "JPEG")
    start = data.index(b"Exif\0\0") + 6
    damaged = data[:start] + b"\xff" * 8 + data[start + 8 :]
    np.testing.assert_array_equal(preprocess.decode(damaged, library), preprocess.decode(data))


def test_load_turns_an_image_when_the_spec_is_paddleclas() -> None:
    spec = replace(paddleclas(1, (40, 24)), resize=ResizeMode.NONE, resize_hw=None)
    upright = preprocess.decode(with_orientation(6, "PNG"), PreprocessAs.PADDLECLAS)
    np.testing.assert_array_equal(preprocess.load(spec, with_orientation(6, "PNG"), raw=True), upright)


SPECS = {
    **{kind.value: replace(shorter_side(64, (56, 48)), filter=kind, **IMAGENET) for kind in PILLOW},
    "bgr": replace(shorter_side(64, (56, 56)), colour=ColourOrder.BGR, **IMAGENET),
    "stretch": replace(stretch((70, 64), (56, 48), (3, 5)), **IMAGENET),
    "none": replace(shorter_side(1, (30, 40)), resize=ResizeMode.NONE, resize_hw=None, **IMAGENET),
    "opencv": replace(shorter_side(64, (56, 48)), filter=ResizeFilter.BILINEAR_CV, **IMAGENET),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("raw", [False, True])
def test_load_equals_prepare_of_decode(spec: PreprocessSpec, raw: bool, tmp_path: Path) -> None:
    for number, (height, width) in enumerate([(64, 64), (75, 100), (130, 66), (90, 231), (64, 65)]):
        for kind, mode in (
            ("JPEG", "RGB"),
            ("PNG", "RGB"),
            ("PNG", "L"),
            ("PNG", "P"),
            ("PNG", "RGBA"),
            ("JPEG", "CMYK"),
        ):
            path = tmp_path / f"{number}.{kind}"
            Image.fromarray(picture(height, width, number).transpose(1, 2, 0).copy()).convert(mode).save(path)
            wanted = preprocess.prepare(spec, preprocess.decode(path), raw=raw)
            for source in (path, path.read_bytes()):
                got = preprocess.load(spec, source, raw=raw)
                assert (got.dtype, got.flags.c_contiguous) == (wanted.dtype, True)
                np.testing.assert_array_equal(got, wanted)


def test_load_raises_as_decode_and_prepare_do(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, whole = shorter_side(64, (56, 48)), jpeg(picture(64, 64))
    for data in (b"", whole[:600], jpeg(picture(64, 64), "PNG")[:2000], whole):
        with monkeypatch.context() as patched, pytest.raises(DataError) as wanted:
            if data is whole:
                patched.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
            preprocess.decode(data)
        with monkeypatch.context() as patched, pytest.raises(DataError) as error:
            if data is whole:
                patched.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
            preprocess.load(spec, data, raw=True)
        assert str(error.value) == str(wanted.value)
    with pytest.raises(DataError, match=r"^image: 20 x 30 is smaller than the crop 56 x 48 \[height x width\]$"):
        preprocess.load(replace(spec, resize=ResizeMode.NONE, resize_hw=None), jpeg(picture(20, 30)), raw=True)
    with pytest.raises(DataError, match=r"^image after Resize: 6400000 x 64 is more than"):
        preprocess.load(spec, jpeg(picture(1, 100_000), "PNG"), raw=True)
