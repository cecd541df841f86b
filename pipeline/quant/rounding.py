"""Second-order weight rounding: each weight is rounded so that it compensates the rounding errors of those before it.

Nearest rounding minimises the error of the weights; what counts is the error of the layer's output. With C the
covariance of the layer's inputs, rounded weights W' give an output error of tr((W - W') C (W - W')^T), and the inputs
of a ResNet's layers are far from independent: in the first layer of a trained one, the SQNR of the output is 38 dB with
nearest rounding and 52 dB with this method. The error of the output's mean is left to bias correction.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv:2210.17323), in the form of back substitution (Babai's nearest plane), which needs no inverse: Chen et al.,
"The Geometry of LLM Quantization" (arXiv:2507.18553).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from pipeline.artefacts import whole_file
from pipeline.errors import ArtefactError
from pipeline.quant.arrays import read_arrays
from pipeline.quant.int8_weights import LIMIT, bound_pairs, round_to_nearest
from pipeline.quant.neighbours import PAIR_LIMIT, Pairs, partners, row_chunks

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int8 = npt.NDArray[np.int8]

_BLOCK = 128  # columns rounded one by one before their errors are passed on to the others, in one matrix product
_ROWS = 512  # rows of a matrix updated at a time: a bound on the memory of their product
_MEASURED = 64  # outputs, at least, of those that there are
_DAMPING = 0.01  # of the mean variance, added to each: with fewer images than inputs, some directions have none
# Largest number of a layer's inputs for one covariance, which takes 340 MB.
# Wider layers, such as the first classifier layer of a VGG with 25,088 inputs, are rounded in blocks of inputs.
WIDEST, BLOCK = 9216, 4096
_DOUBLE = 1024  # inputs; larger covariances are factored in float32, for their time and memory


@dataclass(frozen=True)
class Rounded:
    """A layer's int8 weights, and the SQNR of its output after rounding, in dB."""

    weights: Int8  # [outputs, inputs]
    scales: Float32  # [outputs] or [1], in tensor units a step
    sqnr_db: float
    nearest_sqnr_db: float  # of nearest rounding
    mean_error: Float64 | None = None  # [outputs], what rounding takes from the layer's mean output, in its units


def round_weights(weights: Float32, scales: Float32, covariance: Float32, pairs: Pairs) -> Rounded:
    """Return int8 weights whose layer output is nearest to that of the float ones, as far as rounding in turn finds it.

    A weight is rounded within the range that its already rounded neighbours leave of the bound on their sum; the
    weights after it compensate for the error.

    Args:
        weights: float32 [outputs, inputs].
        scales: float32 [outputs] or [1], in tensor units a step.
        covariance: float32 [inputs, inputs], of the layer's inputs; overwritten, since a large one takes 340 MB.
        pairs: neighbours in a row, see `neighbours`.
    """
    found, powers = _round_in_turn(weights, scales, covariance, pairs)
    return _rounded(found, scales, powers)


def round_groups(weights: Float32, scales: Float32, covariances: Float32, pairs: Pairs) -> Rounded:
    """Return int8 weights as `round_weights` does, of a convolution whose groups have inputs of their own.

    Args:
        covariances: float32 [groups, inputs, inputs], `inputs` those of a group; overwritten.
    """
    found, powers = np.empty(weights.shape, np.int8), np.zeros(3)
    for rows, covariance in zip(np.split(np.arange(len(weights)), len(covariances)), covariances, strict=True):
        of_rows = scales[rows] if scales.size > 1 else scales
        found[rows], of_group = _round_in_turn(weights[rows], of_rows, covariance, pairs)
        powers += of_group
    return _rounded(found, scales, powers)


def round_blocks(
    weights: Float32, scales: Float32, covariances: Callable[[slice], Float32], pairs: Pairs, width: int
) -> Rounded:
    """Return int8 weights as `round_weights` does, of a layer too wide for one covariance: inputs block by block.

    What a block loses is not made up for in the others.

    Args:
        covariances: gives float32 [n, n] of n inputs, which is overwritten.
        width: of a block.
    """
    found, powers = np.empty(weights.shape, np.int8), np.zeros(3)
    for start in range(0, weights.shape[1], width):
        block = slice(start, start + width)
        inside = pairs[((pairs >= start) & (pairs < start + width)).all(axis=1)] - start
        found[:, block], of_block = _round_in_turn(weights[:, block], scales, covariances(block), inside)
        powers += of_block
    across = pairs[pairs[:, 0] // width != pairs[:, 1] // width]
    if len(across):
        found = bound_pairs(found, weights / scales[:, None], pairs)
    return _rounded(found, scales, powers)


def _rounded(found: Int8, scales: Float32, powers: npt.NDArray[np.float64]) -> Rounded:
    signal, noise, nearest = powers.tolist()
    return Rounded(found, scales, _decibel(signal, noise), _decibel(signal, nearest))


def _round_in_turn(
    weights: Float32, scales: Float32, covariance: Float32, pairs: Pairs
) -> tuple[Int8, npt.NDArray[np.float64]]:
    """Return the rounded weights, and the powers of the output, of its noise, and of its noise by nearest rounding.

    The powers are those of evenly chosen outputs.
    """
    inputs = weights.shape[1]
    # The inputs that vary most are rounded first, since those after them can compensate. The last column is first.
    order = np.argsort(np.diag(covariance), kind="stable")
    factor = _factor(covariance, order)
    spread = np.diag(factor).copy()
    # Column i: what an error in each later column means for column i. Above the diagonal the factor is zero.
    for start in range(0, inputs, _ROWS):
        factor[start : start + _ROWS, : start + _ROWS] /= spread[: start + _ROWS]
    # From here on a row holds an input's weights for all outputs, so that what is rounded at once lies together.
    steps = np.ascontiguousarray((weights / scales[:, None]).T[order])
    rounded, wanted = np.empty_like(steps), steps.copy()
    neighbours = _rounded_before(pairs, order)
    # What rounding costs is measured on some outputs: on all it would take a third of the time.
    some = slice(None, None, max(1, len(weights) // _MEASURED))
    scales_of_some = scales[some] if scales.size > 1 else scales
    known = np.ascontiguousarray(steps[:, some])
    missed_by_nearest = known - round_to_nearest(weights[some], scales_of_some, pairs).T[order]
    powers = np.zeros((3, known.shape[1]))
    for end in range(inputs, 0, -_BLOCK):
        block = slice(max(0, end - _BLOCK), end)
        missed = _round_block(block, factor, steps, wanted, rounded, neighbours)
        # The factor is triangular, and `missed` is what the product with the errors of rounding would give.
        below = factor[block.start :, block].T
        products = (below @ known[block.start :], missed[:, some], below @ missed_by_nearest[block.start :])
        for power, outputs in zip(powers, products, strict=True):
            power += np.square(outputs * spread[block, None]).sum(axis=0, dtype=np.float64)
    found = np.empty(weights.shape, np.int8)
    found[:, order] = rounded.T
    return found, (powers * np.square(scales_of_some.astype(np.float64))).sum(axis=1)


def _factor(covariance: Float32, order: npt.NDArray[np.intp]) -> Float32:
    """Return the Cholesky factor of a damped covariance in another order of its inputs, in its place if it is large."""
    # Where no input varies, any positive number will do: the weights are then rounded to the nearest.
    damping = _DAMPING * max(float(np.diag(covariance).mean()), 0.0) or 1.0
    if len(covariance) <= _DOUBLE:
        ordered = covariance[np.ix_(order, order)].astype(np.float64)
        ordered[np.diag_indices_from(ordered)] += damping
        return np.linalg.cholesky(ordered).astype(np.float32)
    for start in range(0, len(covariance), _ROWS):
        rows = slice(start, start + _ROWS)
        covariance[rows] = np.take(covariance[rows], order, axis=1, mode="clip")  # `raise` would take a buffer
    for start in range(0, len(covariance), _ROWS):
        columns = slice(start, start + _ROWS)
        covariance[:, columns] = np.take(covariance[:, columns], order, axis=0, mode="clip")
    covariance[np.diag_indices_from(covariance)] += damping
    factor_in_place(covariance)
    return covariance


def _round_block(
    block: slice, factor: Float32, steps: Float32, wanted: Float32, rounded: Float32, neighbours: list[list[int]]
) -> Float32:
    """Round the weights of some inputs, last one first, and pass their errors on to those before the block.

    Returns:
        float32 [block, outputs]: of each input, by how much it misses what would make up for all errors before it.
    """
    start, count = block.start, block.stop - block.start
    within = np.ascontiguousarray(factor[block, block].T)
    errors = np.zeros((count, steps.shape[1]), np.float32)
    missed = np.empty_like(errors)
    for column in reversed(range(count)):
        target = within[column, column + 1 :] @ errors[column + 1 :]
        target += wanted[start + column]
        found = np.rint(target, out=rounded[start + column])
        low, high = _free_range(rounded, neighbours[start + column])
        np.minimum(np.maximum(found, low, out=found), high, out=found)
        np.subtract(steps[start + column], found, out=errors[column])
        np.subtract(target, found, out=missed[column])
    for top in range(0, start, _ROWS):
        rows = slice(top, min(top + _ROWS, start))
        wanted[rows] += factor[block, rows].T @ errors
    return missed


def _rounded_before(pairs: Pairs, order: npt.NDArray[np.intp]) -> list[list[int]]:
    """Return for each column, in the order of `round_weights`, its neighbours that are rounded before it."""
    place = np.empty_like(order)
    place[order] = np.arange(order.size)
    return [
        [int(place[other]) for other in others if place[other] > column]
        for column, others in enumerate(map(partners(pairs, order.size).__getitem__, order.tolist()))
    ]


def _free_range(rounded: Float32, neighbours: list[int]) -> tuple[Float32 | float, Float32 | float]:
    """Return the least and the largest steps that an input's weights may take; 0 is always between.

    Args:
        rounded: float32 [inputs, outputs].
        neighbours: the inputs that are rounded already and share a bound with it.
    """
    low: Float32 | float = -LIMIT
    high: Float32 | float = LIMIT
    for other in neighbours:
        high = np.minimum(high, PAIR_LIMIT - np.maximum(rounded[other], 0))
        low = np.maximum(low, -PAIR_LIMIT - np.minimum(rounded[other], 0))
    return low, high


def factor_in_place(matrix: Float32) -> None:
    """Turn a positive definite matrix, float32 in C order, into its Cholesky factor L, lower triangular: it was L L^T.

    `numpy.linalg.cholesky` takes twice the memory of the matrix in addition, for one of 340 MB.

    Raises:
        LinAlgError: it is not positive definite.
    """
    # LAPACK reads columns first, so that our lower triangle is the upper one of the transpose.
    _, failed = lapack.spotrf(matrix.T, lower=False, clean=True, overwrite_a=True)
    if failed:
        raise np.linalg.LinAlgError(f"the leading minor of order {failed} is not positive definite")


def mean_error(weights: Float32, rounded: Int8, scales: Float32, means: Float64) -> Float64:
    """Return float64 [outputs]: what rounding the weights takes from a layer's mean output.

    Args:
        means: float64 [inputs] of the inputs, or [groups, inputs].
    """
    groups = means.reshape(-1, weights.shape[1])
    of_rows = np.broadcast_to(scales, len(weights))
    share = len(weights) // len(groups)  # outputs of a group
    found = np.empty(len(weights))
    for rows in row_chunks(weights.shape):
        lost = weights[rows] - rounded[rows] * of_rows[rows, None]
        if len(groups) == 1:
            found[rows] = lost.astype(np.float64) @ groups[0]
        else:
            means_of_rows = groups[np.arange(len(weights))[rows] // share]
            found[rows] = (lost.astype(np.float64) * means_of_rows).sum(axis=1)
    return found


def _decibel(signal: float, noise: float) -> float:
    """Return the ratio in dB; 0 of no signal, 200 at most."""
    return 10 * math.log10(max(signal, 1e-30) / max(noise, signal * 1e-20, 1e-30))


def write_rounded(path: Path, layers: Mapping[str, Rounded]) -> None:
    """Write layers by name to an npz that is complete or absent."""
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "names": np.array(list(layers)),
        "decibels": np.array([(each.sqnr_db, each.nearest_sqnr_db) for each in layers.values()]),
    }
    for index, each in enumerate(layers.values()):
        arrays[f"weights_{index}"] = each.weights
        arrays[f"scales_{index}"] = each.scales
        if each.mean_error is not None:
            arrays[f"mean_error_{index}"] = each.mean_error
    with whole_file(path) as scratch, scratch.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def read_rounded(path: Path) -> dict[str, Rounded]:
    """Return what `write_rounded` wrote.

    Raises:
        ArtefactError: the file is not one that `write_rounded` wrote.
    """
    arrays: dict[str, Any] = read_arrays(path, "file of rounded weights")
    try:
        return {
            str(name): Rounded(
                arrays[f"weights_{index}"],
                arrays[f"scales_{index}"],
                float(ours),
                float(nearest),
                arrays.get(f"mean_error_{index}"),
            )
            for index, (name, (ours, nearest)) in enumerate(zip(arrays["names"], arrays["decibels"], strict=True))
        }
    except (LookupError, ValueError) as err:  # arrays that are not there, or of other shapes
        raise ArtefactError(f"{path}: invalid file of rounded weights ({err}); delete it and build again") from err
