"""What our decoder gives for each kind of image file, beside Pillow (torchvision, timm) and OpenCV (PaddleClas).

Seen with Pillow 13.0.0 and opencv-python-headless 5.0.0.93; differences in steps of 255. Equal to the bit but for what
the tests name: CMYK in OpenCV, and grey of 16 bits, which Pillow's `convert("RGB")` cuts off at 255.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from pipeline.config.choices import PreprocessAs
from pipeline.data.preprocess import decode


def samples(height: int, width: int, channels: int) -> np.ndarray:
    """uint8 [H, W, channels]: smooth values with noise."""
    y, x = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    waves = 127 + 90 * np.sin(np.arange(1, channels + 1) * (6 * x + 3 * y))
    noise = np.random.default_rng(height * width * channels).normal(0, 12, (height, width, channels))
    return (waves + noise).clip(0, 255).astype(np.uint8)


def saved(mode: str, kind: str, height: int = 37, width: int = 53, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if mode == "I;16":
        image = Image.fromarray((samples(height, width, 1)[..., 0].astype(np.uint16) << 8) + 77)
    elif mode in ("P", "1"):
        image = Image.fromarray(samples(height, width, 3))
        image = image.quantize(64) if mode == "P" else image.convert("1")
    else:
        values = samples(height, width, len(Image.new(mode, (1, 1)).getbands()))
        image = Image.frombytes(mode, (width, height), values.tobytes())
    image.save(buffer, kind, **options)
    return buffer.getvalue()


EXACT: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{
        f"JPEG {height} x {width}, {name}": ("RGB", "JPEG", {"height": height, "width": width, "subsampling": name})
        for height, width in ((37, 53), (64, 64), (101, 7), (1, 1))
        for name in ("4:4:4", "4:2:2", "4:2:0")
    },
    "JPEG, progressive": ("RGB", "JPEG", {"progressive": True}),
    "JPEG, grey": ("L", "JPEG", {}),
    "PNG": ("RGB", "PNG", {}),
    "PNG, alpha": ("RGBA", "PNG", {}),
    "PNG, grey": ("L", "PNG", {}),
    "PNG, grey and alpha": ("LA", "PNG", {}),
    "PNG, palette": ("P", "PNG", {}),
    "PNG, palette, one transparent": ("P", "PNG", {"transparency": 3}),
    "PNG, 1 bit": ("1", "PNG", {}),
    "WebP": ("RGB", "WEBP", {"quality": 80}),
    "WebP, lossless": ("RGB", "WEBP", {"lossless": True}),
    "WebP, alpha": ("RGBA", "WEBP", {"lossless": True}),
    "TIFF": ("RGB", "TIFF", {}),
    "BMP": ("RGB", "BMP", {}),
    "GIF": ("P", "GIF", {}),
    "JPEG 2000": ("RGB", "JPEG2000", {}),
}
AVIF: dict[str, tuple[str, str, dict[str, Any]]] = {
    "AVIF, 4:2:0": ("RGB", "AVIF", {"quality": 80}),
    "AVIF, 4:4:4": ("RGB", "AVIF", {"subsampling": "4:4:4"}),
}
CMYK = {"JPEG": 2, "TIFF": 1}  # steps in OpenCV, which converts by arithmetic of its own
SIXTEEN = ["PNG", "TIFF"]
TURNED: dict[str, dict[str, Any]] = {"JPEG": {"quality": 90}, "PNG": {}, "WEBP": {"lossless": True}}


def in_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.moveaxis(np.asarray(image.convert("RGB")), -1, 0)


def in_opencv(data: bytes) -> np.ndarray:
    cv2 = pytest.importorskip("cv2", reason="compares with OpenCV's decoders")
    found: np.ndarray = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return np.moveaxis(found[..., ::-1], -1, 0)


def made(name: str) -> bytes:
    if name in AVIF and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    mode, kind, options = {**EXACT, **AVIF}[name]
    return saved(mode, kind, **options)


@pytest.mark.parametrize("name", [*EXACT, *AVIF])
def test_equals_pillow(name: str) -> None:
    np.testing.assert_array_equal(decode(made(name)), in_pillow(made(name)))


@pytest.mark.parametrize("name", [*EXACT, *AVIF])
def test_equals_opencv(name: str) -> None:
    np.testing.assert_array_equal(decode(made(name), PreprocessAs.PADDLECLAS), in_opencv(made(name)))


@pytest.mark.parametrize("kind", CMYK)
def test_cmyk_equals_pillow_and_is_within_two_steps_of_opencv(kind: str) -> None:
    data = saved("CMYK", kind)
    np.testing.assert_array_equal(decode(data), in_pillow(data))
    difference = abs(decode(data, PreprocessAs.PADDLECLAS).astype(int) - in_opencv(data))
    assert difference.max() == CMYK[kind]
    assert difference.mean() < 0.8


@pytest.mark.parametrize("kind", SIXTEEN)
def test_grey_of_16_bits_equals_opencv_and_is_not_white_as_in_pillow(kind: str) -> None:
    data = saved("I;16", kind)
    expected = np.broadcast_to(samples(37, 53, 1)[..., 0], (3, 37, 53))
    np.testing.assert_array_equal(decode(data), expected)
    np.testing.assert_array_equal(decode(data, PreprocessAs.PADDLECLAS), in_opencv(data))
    assert in_pillow(data).min() == 255


def test_colour_of_16_bits_equals_pillow_and_opencv() -> None:
    cv2 = pytest.importorskip("cv2", reason="writes a PNG of 16 bits per channel")
    values = samples(37, 53, 3).astype(np.uint16) * 256 + 77
    data = cv2.imencode(".png", values)[1].tobytes()
    np.testing.assert_array_equal(decode(data), values.transpose(2, 0, 1)[::-1] >> 8)
    np.testing.assert_array_equal(decode(data), in_pillow(data))
    np.testing.assert_array_equal(decode(data, PreprocessAs.PADDLECLAS), in_opencv(data))


@pytest.mark.parametrize("kind", TURNED)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_obeyed_as_in_opencv_and_ignored_as_in_pillow(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved("RGB", kind, exif=exif, **TURNED[kind])
    np.testing.assert_array_equal(decode(data), in_pillow(data))
    np.testing.assert_array_equal(decode(data, PreprocessAs.PADDLECLAS), in_opencv(data))


@pytest.mark.parametrize("orientation", [2, 6])
def test_orientation_of_avif_is_left_alone_by_opencv(orientation: int) -> None:
    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved("RGB", "AVIF", exif=exif)
    np.testing.assert_array_equal(decode(data, PreprocessAs.PADDLECLAS), in_opencv(data))
    with Image.open(io.BytesIO(data)) as image:
        turned = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(data, PreprocessAs.TRANSFORMERS), turned)
