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

from pipeline.artefacts import whole_file
from pipeline.errors import ArtefactError
from pipeline.quant.arrays import read_arrays
from pipeline.quant.int8_weights import LIMIT, bound_pairs, round_to_nearest
from pipeline.quant.neighbours import PAIR_LIMIT, Pairs, partners

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int8 = npt.NDArray[np.int8]

_BLOCK = 128  # columns rounded one by one before their errors are passed on to the others, in one matrix product
_ROWS = 1024  # rows of a covariance updated at a time: a bound on the memory of their product
_FACTORED = 256  # columns of a covariance factored at a time
_DAMPING = 0.01  # of the mean variance, added to each: with fewer images than inputs, some directions have none
# Largest number of a layer's inputs for one covariance, which takes 340 MB and three times that while it is factored.
# Wider layers, such as the first classifier layer of a VGG with 25,088 inputs, are rounded in blocks of inputs.
WIDEST, BLOCK = 9216, 4096
_DOUBLE = 2304  # inputs; larger covariances are factored in float32, for their memory


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
        covariance: float32 [inputs, inputs], of the layer's inputs.
        pairs: neighbours in a row, see `neighbours`.
    """
    found, powers = _round_in_turn(weights, scales, covariance, pairs)
    return _rounded(found, scales, powers)


def round_groups(weights: Float32, scales: Float32, covariances: Float32, pairs: Pairs) -> Rounded:
    """Return int8 weights as `round_weights` does, of a convolution whose groups have inputs of their own.

    Args:
        covariances: float32 [groups, inputs, inputs], `inputs` those of a group.
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
        covariances: gives float32 [n, n] of n inputs.
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
    """Return the rounded weights, and the powers of the output, of its noise, and of its noise by nearest rounding."""
    inputs = weights.shape[1]
    variances = np.diag(covariance).copy()
    # The inputs that vary most are rounded first, since those after them can compensate. The last column is first.
    order = np.argsort(variances, kind="stable")
    ordered = covariance[np.ix_(order, order)].astype(np.float64 if inputs <= _DOUBLE else np.float32, copy=False)
    del covariance  # hundreds of megabytes for the widest layers; the caller may have released it
    # Where no input varies, any positive number will do: the weights are then rounded to the nearest.
    ordered[np.diag_indices(inputs)] += _DAMPING * max(float(variances.mean()), 0.0) or 1.0
    factor_in_place(ordered)
    factor = ordered.astype(np.float32, copy=False)
    del ordered
    spread = np.diag(factor).copy()
    factor /= spread  # column i: what an error in each later column means for column i
    steps = (weights / scales[:, None])[:, order]
    rounded = np.empty_like(steps)
    wanted = steps.copy()
    neighbours = _rounded_before(pairs, order)
    for end in range(inputs, 0, -_BLOCK):
        start = max(0, end - _BLOCK)
        within = np.ascontiguousarray(factor[start:end, start:end].T)
        errors = np.zeros((len(steps), end - start), np.float32)
        for column in reversed(range(end - start)):
            target = wanted[:, start + column] + errors[:, column + 1 :] @ within[column, column + 1 :]
            low, high = _free_range(rounded, neighbours[start + column])
            rounded[:, start + column] = np.clip(np.rint(target), low, high)
            errors[:, column] = steps[:, start + column] - rounded[:, start + column]
        wanted[:, :start] += errors @ factor[start:end, :start]
    found = np.empty(weights.shape, np.int8)
    found[:, order] = rounded

    def power(of_weights: Float32) -> float:
        return float(np.square((of_weights * scales[:, None]) @ factor * spread).sum(dtype=np.float64))

    nearest = round_to_nearest(weights, scales, pairs)[:, order]
    return found, np.array([power(steps), power(steps - rounded), power(steps - nearest)])


def _rounded_before(pairs: Pairs, order: npt.NDArray[np.intp]) -> list[list[int]]:
    """Return for each column, in the order of `round_weights`, its neighbours that are rounded before it."""
    place = np.empty_like(order)
    place[order] = np.arange(order.size)
    return [
        [int(place[other]) for other in others if place[other] > column]
        for column, others in enumerate(map(partners(pairs, order.size).__getitem__, order.tolist()))
    ]


def _free_range(rounded: Float32, neighbours: list[int]) -> tuple[Float32, Float32]:
    """Return the least and the largest steps that a column may take: float32 [outputs] each; 0 is always between."""
    low = np.full(len(rounded), -LIMIT, np.float32)
    high = np.full(len(rounded), LIMIT, np.float32)
    for column in neighbours:
        np.minimum(high, PAIR_LIMIT - rounded[:, column].clip(min=0), out=high)
        np.maximum(low, -PAIR_LIMIT - rounded[:, column].clip(max=0), out=low)
    return low, high


def factor_in_place(matrix: npt.NDArray[np.floating[Any]]) -> None:
    """Turn a positive definite matrix into its Cholesky factor L, lower triangular: it was L L^T.

    Block by block: `numpy.linalg.cholesky` takes twice the memory of the matrix in addition, for one of 340 MB.
    """
    size = len(matrix)
    for start in range(0, size, _FACTORED):
        end = min(start + _FACTORED, size)
        corner, below = matrix[start:end, start:end], matrix[end:, start:end]
        corner[...] = np.linalg.cholesky(corner)
        matrix[start:end, end:] = 0
        below[...] = np.linalg.solve(corner, below.T).T
        for top in range(end, size, _ROWS):
            bottom = min(top + _ROWS, size)
            matrix[top:bottom, end:bottom] -= below[top - end : bottom - end] @ below[: bottom - end].T


def mean_error(weights: Float32, rounded: Int8, scales: Float32, means: Float64) -> Float64:
    """Return float64 [outputs]: what rounding the weights takes from a layer's mean output.

    Args:
        means: float64 [inputs] of the inputs, or [groups, inputs].
    """
    groups = means.reshape(-1, weights.shape[1])
    lost = (weights - rounded * scales[:, None]).reshape(len(groups), -1, weights.shape[1])
    found: Float64 = (lost.astype(np.float64) @ groups[:, :, None]).reshape(-1)
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
