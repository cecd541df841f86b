"""Counting of bfloat16 values by their bits: the upper 16 bits of a float32, in uint16.

Numbers from 0 up are ordered as their bits, also when read as int16; numbers below zero have the highest bit, and grow
in magnitude with their bits. NaNs lie beyond Inf on either side.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt

from pipeline.quant import qmath
from pipeline.quant.scanning import in_rows, take_columns

Float32 = npt.NDArray[np.float32]
Halves = npt.NDArray[np.uint16]
Values = Float32 | Halves

NO_TAILS = (qmath.BINS, qmath.BINS)  # keys beyond all numbers
_SIGN = 0x8000
_SHIFT = 16 - qmath.KEY_SHIFT  # bits of a key that bfloat16 does not have


def keys(bits: Halves) -> qmath.Counts:
    """Return the histogram bin of each value: int64 [n], as `qmath.float_keys` of the same values in float32."""
    return bits.astype(np.int64) << _SHIFT


def widen(values: Values) -> Float32:
    """Return values as float32, in the same shape; what is float32 already is not copied."""
    if values.dtype == np.float32:
        return values.view(np.float32)
    found: Float32 = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return found


def scan(bits: Halves, tails: tuple[int, int]) -> tuple[list[Halves], float, float]:
    """Return the values of the tails, in pieces, and the least and the largest of all values.

    The least is 0 where none is below zero: no range depends on it then. If a value is NaN, one of the two is.

    Args:
        bits: [n], n > 0.
        tails: keys of the magnitudes where the tails begin, below and above zero.
    """
    low, high = map(_first_bits, tails)
    outside: list[Halves] = []
    least, most = 0.0, -math.inf
    for grid in in_rows(bits):
        # The largest of each column: few columns hold a value of the tails, so that the grid is read once or twice.
        unsigned = np.maximum.reduce(grid, axis=0)
        last = top = int(unsigned.max())  # the lowest number where one is below zero
        signed = unsigned.view(np.int16)
        if last >= _SIGN:
            least = float(np.minimum(least, _value(last)))  # which keep a NaN; Python's own would not
            signed = np.maximum.reduce(grid.view(np.int16), axis=0)
            top = int(signed.max())
            if last - _SIGN >= low:
                found = take_columns(grid, unsigned >= low + _SIGN)
                outside.append(found[found >= low + _SIGN])
        if top >= high:
            found = take_columns(grid, signed >= high)
            outside.append(found[found.view(np.int16) >= high])
        most = float(np.maximum(most, _value(top if top >= 0 else int(grid.min()))))
    return outside, least, most


def inside(bits: Halves, tails: tuple[int, int]) -> Halves:
    """Return the values that are not in the tails."""
    low, high = map(_first_bits, tails)
    found: Halves = bits[(bits.view(np.int16) < high) & (bits < low + _SIGN)]
    return found


def is_low(bits: Halves, key: int) -> npt.NDArray[np.bool_]:
    """Tell of each value whether it is in the lower tail, which begins at the magnitude of this key; -0.0 counts."""
    return bits >= _first_bits(key) + _SIGN


def magnitudes(bits: Halves, axis: int) -> npt.NDArray[np.float64]:
    """Return float64 [channels], the largest magnitude of each channel along an axis."""
    axes = tuple(each for each in range(bits.ndim) if each != axis % bits.ndim)
    largest: Halves = bits.max(axis=axes)
    if int(largest.max(initial=0)) >= _SIGN:
        # Numbers below zero are the largest in uint16, and the least in int16.
        signed = bits.view(np.int16).max(axis=axes)
        largest = np.maximum(np.maximum(signed, 0).view(np.uint16), np.where(largest >= _SIGN, largest - _SIGN, 0))
    return widen(largest).astype(np.float64)


def _first_bits(key: int) -> int:
    """Return the least bits of a number >= 0 whose key is `key` or more; beyond all numbers at most."""
    return min(-(-key >> _SHIFT), _SIGN - 1)


def _value(bits: int) -> float:
    (value,) = struct.unpack("<f", struct.pack("<I", bits << 16))
    return float(value)
