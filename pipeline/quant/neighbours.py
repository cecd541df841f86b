"""Which weights x86 kernels add up in 16 bits, and the bound that keeps those sums exact.

CPUs with AVX2 or AVX-512 and without VNNI multiply uint8 inputs by int8 weights with `vpmaddubsw`, which adds the
products of two neighbouring inputs in 16 bits and cuts the sum off at -32768 and 32767. With inputs up to 255 nothing
is cut off while the weights of a pair that have the same sign sum to at most 128 in magnitude: 255 * 128 = 32640. A
bound on pairs costs less than weights of 7 bits (64 + 64), the `reduce_range` of other tools.

Which weights are neighbours was found by enumerating all pairs in both runtimes (benchmarks/pairs.py; ONNX Runtime
1.32.0, OpenVINO 2026.4.1):

- channels (2c, 2c + 1) of a group at one kernel position, in OpenVINO's convolutions;
- consecutive weights in the order row, column, channel, in ONNX Runtime and in OpenVINO's matrix products (the same for
  an even number of channels);
- in layers with one input channel and several filters: rows, columns or lines, depending on kernel size, stride and
  CPU, so every pair is bounded;
- in layers with one input channel and one filter: none, such depthwise convolutions are exact on every CPU;
- OpenVINO splits matrix products of 257 to 511 inputs in two halves, each with pairs of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

PAIR_LIMIT = 128  # steps: what two neighbouring weights of the same sign may sum to, in magnitude

_CHUNK = 1 << 17  # weights: the sums of their pairs stay in the cache, a quarter of the time of 2^22
_SPLIT = range(257, 512)  # inputs of the matrix products that OpenVINO computes in two halves

Pairs = npt.NDArray[np.intp]  # [pairs, 2]: two weights of an output, by their place in its row; the first is lower


def weight_pairs(shape: Sequence[int], groups: int = 1) -> Pairs:
    """Return the neighbours among the weights of one output, for any runtime and any x86 CPU.

    Args:
        shape: of the weights, [outputs, channels of a group, *kernel], or [outputs, inputs] of a matrix.
        groups: of the convolution.

    Returns:
        Places in a row of `weights.reshape(outputs, -1)`, sorted. A weight may be in several pairs. Empty for depthwise
        convolutions with one filter a channel.
    """
    outputs, channels, *kernel = shape
    positions = math.prod(kernel)
    if channels == 1 and groups > 1 and outputs == groups:
        return np.empty((0, 2), np.intp)
    if channels == 1:
        return np.stack(np.triu_indices(positions, k=1), axis=1)
    places = np.arange(channels * positions).reshape(channels, positions)
    even = channels - channels % 2
    by_channel = np.stack([places[0:even:2].reshape(-1), places[1:even:2].reshape(-1)], axis=1)
    in_order = places.T.reshape(-1)  # row, column, channel
    found = [by_channel, _in_twos(in_order)]
    if (not kernel or groups > 1) and in_order.size in _SPLIT:
        found.append(_in_twos(in_order[(in_order.size + 1) // 2 :]))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _in_twos(places: npt.NDArray[np.intp]) -> Pairs:
    return places[: places.size - places.size % 2].reshape(-1, 2)


def largest_sums(rows: npt.NDArray[np.generic], pairs: Pairs) -> npt.NDArray[np.float64]:
    """Return the largest sum of a pair of the same sign in each row, as a magnitude: float64 [outputs].

    A weight whose neighbour is of the other sign counts alone.

    Args:
        rows: [outputs, inputs], weights in float or in steps.
    """
    if not len(pairs):
        return np.zeros(len(rows))
    largest = np.empty(len(rows))
    for some in row_chunks(rows.shape):
        above, below = same_sign_sums(rows[some], pairs)
        largest[some] = np.maximum(above, below).max(axis=1)
    return largest


def row_chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield the rows of a matrix of that shape in chunks: sums of pairs take many times the memory of the weights."""
    count = max(1, _CHUNK // max(1, shape[1]))
    return (slice(start, start + count) for start in range(0, shape[0], count))


def same_sign_sums(
    rows: npt.NDArray[np.generic], pairs: Pairs
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the sums of the positive and of the negative weights of each pair, as magnitudes: [outputs, pairs]."""
    first, second = (np.take(rows, pairs[:, side], axis=1).astype(np.float64) for side in (0, 1))
    above: npt.NDArray[np.float64] = np.maximum(first, 0)
    above += np.maximum(second, 0)
    np.minimum(first, 0, out=first)
    first += np.minimum(second, 0, out=second)
    return above, np.subtract(0.0, first, out=first)


def partners(pairs: Pairs, inputs: int) -> list[tuple[int, ...]]:
    """Return for each of the inputs those it is paired with."""
    found: list[list[int]] = [[] for _ in range(inputs)]
    for first, second in pairs.tolist():
        found[first].append(second)
        found[second].append(first)
    return [tuple(each) for each in found]
