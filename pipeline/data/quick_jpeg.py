"""JPEGs decoded, resized and cropped to Pillow's pixels in three fifths of its time, with the extra `fast`.

simplejpeg calls libjpeg-turbo, as Pillow does, with a whole file and one piece of memory for the pixels; the resize is
compiled. What is no usual JPEG, and every damaged one, is left to Pillow, which then says what is wrong with it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from enum import Enum
from functools import cache

import numpy as np
from PIL import Image

from pipeline.data import compiled_resize
from pipeline.data.compiled_resize import Pixels, Planes
from pipeline.data.pillow_resize import Geometry

_MOST_KNOWN = 4096  # geometries
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


def is_usual_jpeg(image: Image.Image) -> bool:
    """Tell whether an opened image may be decoded quickly."""
    return image.format in ("JPEG", "MPO") and "progressive" not in image.info


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

    def load(self, content: bytes, geometry: Geometry, by_pillow: Callable[[], Planes]) -> Planes:
        """Return what decoding, resizing and cropping give, uint8 [3, *geometry.crop_hw].

        A size that comes a second time is a trial: in which order Pillow resizes it, and whether the pixels are the
        same. What it gives for one photo it gives for all of that size.

        Args:
            content: a usual JPEG of the geometry's size, as far as its header says.
            by_pillow: does the same, and raises what is wrong with a damaged file.
        """
        order = self._orders.get(geometry)
        if order is None and len(self._orders) < _MOST_KNOWN:
            is_known = compiled_resize.is_known(geometry.resize_filter)
            self._orders[geometry] = _Order.SEEN_ONCE if is_known else _Order.OTHERWISE
        if order in (None, _Order.OTHERWISE):
            return by_pillow()
        pixels = self._decode(content, geometry.hw)
        if pixels is None:
            return by_pillow()
        if order is _Order.SEEN_ONCE:
            expected = by_pillow()
            self._orders[geometry] = _find_order(pixels, geometry, expected)
            return expected
        return _resize(pixels, geometry, order)

    def _decode(self, content: bytes, hw: tuple[int, int]) -> Pixels | None:
        """Return the pixels of a JPEG of this size; None where it is damaged, even if Pillow would take that."""
        try:
            pixels = self._decode_jpeg(content, "RGBX", strict=True)
        except ValueError:
            return None
        if pixels.shape[:2] != hw:
            return None
        packed: Pixels = pixels.reshape(hw[0], -1).view(np.uint32)
        return packed


def _find_order(pixels: Pixels, geometry: Geometry, expected: Planes) -> _Order:
    rows_first, columns_first = (
        np.array_equal(_resize(pixels, geometry, order), expected)
        for order in (_Order.ROWS_FIRST, _Order.COLUMNS_FIRST)
    )
    if rows_first and columns_first and geometry.hw[0] != geometry.full_hw[0] and geometry.hw[1] != geometry.full_hw[1]:
        return _Order.SEEN_ONCE  # an image of one colour tells nothing
    return _Order.ROWS_FIRST if rows_first else _Order.COLUMNS_FIRST if columns_first else _Order.OTHERWISE


def _resize(pixels: Pixels, geometry: Geometry, order: _Order) -> Planes:
    _, full_hw, corner, crop_hw, resize_filter = geometry
    rows_first = order is _Order.ROWS_FIRST
    return compiled_resize.resize_and_crop(pixels, resize_filter, full_hw, corner, crop_hw, rows_first=rows_first)
