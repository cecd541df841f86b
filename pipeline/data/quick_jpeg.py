"""JPEGs decoded, resized and cropped to Pillow's pixels in three fifths of its time, with the extra `fast`.

simplejpeg calls libjpeg-turbo, as Pillow does, with a whole file and one piece of memory for the pixels; the resize is
compiled. What is no usual JPEG, and every damaged one, is left to Pillow, which then says what is wrong with it.
"""

from __future__ import annotations

import io
from enum import Enum
from functools import cache

import numpy as np
from PIL import Image

from pipeline.data import compiled_resize
from pipeline.data.pillow_resize import Geometry, resize_whole

_MOST_KNOWN = 4096  # geometries
_MOST_TRIED = 4_000_000  # pixels of an image: the trial needs some 20 bytes of each
_SUBSAMPLINGS = (0, 1, 2)  # 4:4:4, 4:2:2, 4:2:0 in Pillow's numbers
_ODD_HW = (61, 83)  # blocks and halves of chroma are cut


class _Order(Enum):
    """How Pillow resizes an image of some geometry."""

    SEEN_ONCE = "not tried yet"
    ROWS_FIRST = "rows first"
    COLUMNS_FIRST = "columns first"
    OTHERWISE = "to other pixels than are computed here"


@cache
def find_quick_jpegs() -> QuickJpegs | None:
    """Return what decodes JPEGs quickly in this process; None where its libraries are missing or differ from Pillow."""
    try:
        quick = QuickJpegs()
    except ImportError:  # Numba also raises it for a NumPy that it does not know yet
        return None
    return quick if quick.decodes_as_pillow() else None


class QuickJpegs:
    """Decodes, resizes and crops JPEGs. Any thread may call it."""

    def __init__(self) -> None:
        """Compile the resize, which takes two seconds in the first of a process.

        Raises:
            ImportError: the extra `fast` is not installed.
        """
        import simplejpeg

        self._decode_jpeg = simplejpeg.decode_jpeg
        self._orders: dict[Geometry, _Order] = {}
        compiled_resize.prepare()

    def decodes_as_pillow(self) -> bool:
        """Tell whether both libjpeg-turbos make the same pixels of noise."""
        pixels = np.random.default_rng(0).integers(0, 256, (*_ODD_HW, 3), dtype=np.uint8)
        for subsampling in _SUBSAMPLINGS:
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG", subsampling=subsampling)
            with Image.open(file) as image:
                own = self._decode(file.getvalue(), _ODD_HW)
                if own is None or not np.array_equal(own.view(np.uint8).reshape(*_ODD_HW, 4)[..., :3], image):
                    return False
        return True

    def load(self, image: Image.Image, content: bytes, geometry: Geometry) -> compiled_resize.Planes | None:
        """Return what decoding, resizing and cropping give, uint8 [3, *geometry.crop_hw]; None: Pillow has to do it.

        Args:
            image: opened from `content`, its geometry's size, not decoded yet.
        """
        if image.format not in ("JPEG", "MPO") or image.mode != "RGB" or "progressive" in image.info:
            return None
        order = self._order(geometry)
        if order not in (_Order.ROWS_FIRST, _Order.COLUMNS_FIRST):
            return None
        pixels = self._decode(content, geometry.hw)
        return None if pixels is None else _resize(pixels, geometry, order)

    def _decode(self, content: bytes, hw: tuple[int, int]) -> compiled_resize.Pixels | None:
        """Return the pixels of a JPEG of this size; None where it is damaged, even if Pillow would take that."""
        try:
            pixels = self._decode_jpeg(content, "RGBX", strict=True)
        except ValueError:
            return None
        if pixels.shape[:2] != hw:
            return None
        packed: compiled_resize.Pixels = pixels.reshape(hw[0], -1).view(np.uint32)
        return packed

    def _order(self, geometry: Geometry) -> _Order:
        """Find out how Pillow resizes, by a trial where the geometry comes again."""
        if geometry not in self._orders:
            if len(self._orders) < _MOST_KNOWN:
                tried = compiled_resize.is_known(geometry.resize_filter) and np.prod(geometry.hw) <= _MOST_TRIED
                self._orders[geometry] = _Order.SEEN_ONCE if tried else _Order.OTHERWISE
            return _Order.OTHERWISE
        if self._orders[geometry] is _Order.SEEN_ONCE:
            self._orders[geometry] = _try_orders(geometry)
        return self._orders[geometry]


def _try_orders(geometry: Geometry) -> _Order:
    pixels = np.random.default_rng(0).integers(0, 256, (*geometry.hw, 4), dtype=np.uint8)
    expected = np.moveaxis(np.asarray(resize_whole(Image.fromarray(pixels[..., :3].copy()), geometry)), 2, 0)
    packed = pixels.reshape(geometry.hw[0], -1).view(np.uint32)
    for order in (_Order.ROWS_FIRST, _Order.COLUMNS_FIRST):
        if np.array_equal(_resize(packed, geometry, order), expected):
            return order
    return _Order.OTHERWISE


def _resize(pixels: compiled_resize.Pixels, geometry: Geometry, order: _Order) -> compiled_resize.Planes:
    _, full_hw, corner, crop_hw, resize_filter = geometry
    rows_first = order is _Order.ROWS_FIRST
    return compiled_resize.resize_and_crop(pixels, resize_filter, full_hw, corner, crop_hw, rows_first=rows_first)
