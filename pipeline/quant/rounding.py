"""Second-order weight rounding: each weight is rounded so that it makes up for what the ones before it lost.

Nearest rounding keeps the weights; what counts is the layer's output. With C the covariance of the layer's inputs, the
error of rounded weights W' is tr((W - W') C (W - W')^T), and inputs of a ResNet's layers are far from independent: in
the first layer of a trained one, nearest rounding loses 38 dB, this 52. What it does to the mean is bias correction's.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv:2210.17323), in the form of back substitution (Babai's nearest plane), which needs no inverse: Chen et al.,
"The Geometry of LLM Quantization" (arXiv:2507.18553).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from pipeline.artefacts import whole_file
from pipeline.errors import ArtefactError
from pipeline.quant.graphs import constants

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int8 = npt.NDArray[np.int8]

LIMIT = 127  # of symmetric int8
REDUCED_LIMIT = 64  # 7 bits: two products with a uint8 stay below 2^15, where instructions sum them in 16 bits
_BLOCK = 128  # columns rounded one by one before the others hear of it, in one matrix product
_ROWS = 1024  # columns of inputs multiplied at a time: fewer are bound by memory, more take more of it
_FACTORED = 256  # columns of a covariance factored at a time
_DAMPING = 0.01  # of the mean variance, added to each: fewer images than inputs leave directions without any
_SAME_SCALE = 1e-5  # relative: the last bits of a float32
_DOUBLE = 2304  # inputs; larger covariances are factored in float32, for their memory


@dataclass(frozen=True)
class Layer:
    """A convolution or Gemm of the float32 model, as a matrix product of its weights with columns of inputs."""

    name: str
    source: str  # the activation it reads
    weights: Float32  # [outputs, inputs]; inputs = channels * kernel height * kernel width
    kernel: tuple[int, int] | None  # None: a Gemm
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    shape: tuple[int, ...] = ()  # of the weights in the model
    transposed: bool = False  # in the model they are [inputs, outputs]

    @property
    def inputs(self) -> int:
        return int(self.weights.shape[1])

    def columns(self, values: Float32, positions: int, random: np.random.Generator) -> Float32:
        """Return what the layer multiplies its weights with: float32 [n, inputs], a copy; n <= `positions`.

        Args:
            values: float32 [1, C, H, W] or [1, C], one image's input of the layer.
        """
        if self.kernel is None:
            rows: Float32 = values.reshape(-1, self.inputs).copy()
            return rows
        top, left, bottom, right = self.pads
        padded = np.pad(values[0], ((0, 0), (top, bottom), (left, right)))
        spans = [(size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(1, 2))
        windows = windows[:, :: self.strides[0], :: self.strides[1], :: self.dilations[0], :: self.dilations[1]]
        height, width = windows.shape[1:3]
        count = height * width
        chosen = random.choice(count, positions, replace=False) if count > positions else np.arange(count)
        found: Float32 = windows[:, chosen // width, chosen % width].swapaxes(0, 1).reshape(len(chosen), -1)
        return found


def layers_of(model: onnx.ModelProto) -> Iterator[Layer]:
    """Yield the layers that can be rounded, in graph order; grouped convolutions and shared weights are left out."""
    known = constants(model)
    uses = Counter(name for node in model.graph.node for name in node.input)
    for node in model.graph.node:
        weighted = node.op_type in ("Conv", "Gemm") and node.input[1] in known and node.input[0] not in known
        if not weighted or uses[node.input[1]] > 1:
            continue
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        stored = numpy_helper.to_array(known[node.input[1]]).astype(np.float32, copy=False)
        if node.op_type == "Gemm":
            if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0:
                continue
            transposed = not attributes.get("transB", 0)
            weights = stored.T if transposed else stored
            yield Layer(node.name, node.input[0], weights, None, shape=stored.shape, transposed=transposed)
            continue
        if stored.ndim != 4 or attributes.get("group", 1) != 1 or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
            continue
        yield Layer(
            node.name,
            node.input[0],
            stored.reshape(len(stored), -1),
            (stored.shape[2], stored.shape[3]),
            tuple(attributes.get("strides", (1, 1))),
            tuple(attributes.get("dilations", (1, 1))),
            tuple(attributes.get("pads", (0, 0, 0, 0))),
            stored.shape,
        )


class Covariance:
    """The covariance of a layer's inputs, summed over columns as they come."""

    def __init__(self, inputs: int) -> None:
        self._products = np.zeros((inputs, inputs), np.float32)
        self._sums = np.zeros(inputs, np.float64)
        self._shift: Float32 | None = None  # near the means: sums of squares far from zero would drown the variances
        self._pending: list[Float32] = []
        self._count = 0

    def add(self, columns: Float32) -> None:
        """Add float32 [n, inputs]."""
        self._pending.append(columns)
        if sum(map(len, self._pending)) >= min(_ROWS, len(self._sums)):
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            columns = np.concatenate(self._pending)
            if self._shift is None:
                self._shift = columns.mean(axis=0)
            columns -= self._shift
            # Block by block, the lower triangle only: a whole product would take the memory of the sums once more.
            for start in range(0, columns.shape[1], _ROWS):
                end = start + _ROWS
                self._products[start:end, :end] += columns[:, start:end].T @ columns[:, :end]
            self._sums += columns.sum(axis=0, dtype=np.float64)
            self._count += len(columns)
            self._pending.clear()

    def means(self) -> Float64:
        """Return float64 [inputs]."""
        return self._centred_means() + (0.0 if self._shift is None else self._shift)

    def _centred_means(self) -> Float64:
        self._flush()
        return self._sums / self._count

    def result(self) -> Float32:
        """Return float32 [inputs, inputs] and keep no part of it: nothing can be added after."""
        means = self._centred_means().astype(np.float32)
        covariance, self._products = self._products, np.zeros((0, 0), np.float32)
        for start in range(0, len(means), _ROWS):
            end = start + _ROWS
            covariance[start:end, :end] /= np.float32(self._count)
            covariance[start:end, :end] -= np.outer(means[start:end], means[:end])
        for start in range(0, len(means), _ROWS):
            end = start + _ROWS
            covariance[start:end, end:] = covariance[end:, start:end].T
        return covariance


def scales_of(weights: Float32, *, per_channel: bool, limit: int = LIMIT) -> Float32:
    """Return the scales of symmetric int8 weights [outputs, inputs]: float32 [outputs], or [1] for the whole tensor."""
    largest = np.abs(weights).max(axis=1) if per_channel else np.abs(weights).max(keepdims=True).reshape(1)
    scales: Float32 = np.where(largest > 0, largest / np.float32(limit), np.float32(1)).astype(np.float32)
    return scales


@dataclass(frozen=True)
class Rounded:
    """A layer's int8 weights, and the share of its output's variance that rounding costs, in dB: more is better."""

    weights: Int8  # [outputs, inputs]
    sqnr_db: float
    nearest_sqnr_db: float  # of nearest rounding
    mean_error: Float64 | None = None  # [outputs], what rounding takes from the layer's mean output, in its units


def round_weights(weights: Float32, scales: Float32, covariance: Float32, limit: int = LIMIT) -> Rounded:
    """Return int8 weights whose layer output is nearest to that of the float ones, as far as rounding in turn finds it.

    Args:
        weights: float32 [outputs, inputs].
        scales: float32 [outputs] or [1], units a step.
        covariance: float32 [inputs, inputs], of the layer's inputs.
        limit: the largest magnitude of an int8 weight.
    """
    inputs = weights.shape[1]
    variances = np.diag(covariance).copy()
    # The inputs that vary most are rounded first: those after them make up for them. The last column is first.
    order = np.argsort(variances, kind="stable")
    ordered = covariance[np.ix_(order, order)].astype(np.float64 if inputs <= _DOUBLE else np.float32, copy=False)
    del covariance  # hundreds of megabytes, for the widest layers; the caller may have let go of it
    # Where nothing varies at all, one is as good as any: the weights are then rounded to the nearest.
    ordered[np.diag_indices(inputs)] += _DAMPING * max(float(variances.mean()), 0.0) or 1.0
    factor_in_place(ordered)
    factor = ordered.astype(np.float32, copy=False)
    del ordered
    spread = np.diag(factor).copy()
    factor /= spread  # column i: what an error in each later column means for column i
    steps = (weights / scales[:, None])[:, order]
    rounded = np.empty_like(steps)
    wanted = steps.copy()
    for end in range(inputs, 0, -_BLOCK):
        start = max(0, end - _BLOCK)
        within = np.ascontiguousarray(factor[start:end, start:end].T)
        errors = np.zeros((len(steps), end - start), np.float32)
        for column in reversed(range(end - start)):
            target = wanted[:, start + column] + errors[:, column + 1 :] @ within[column, column + 1 :]
            rounded[:, start + column] = np.clip(np.rint(target), -limit, limit)
            errors[:, column] = steps[:, start + column] - rounded[:, start + column]
        wanted[:, :start] += errors @ factor[start:end, :start]
    found = np.empty(weights.shape, np.int8)
    found[:, order] = rounded

    def power(of_weights: Float32) -> float:
        return float(np.square((of_weights * scales[:, None]) @ factor * spread).sum(dtype=np.float64))

    nearest = np.clip(np.rint(steps), -limit, limit)
    signal = power(steps)
    return Rounded(found, _decibel(signal, power(steps - rounded)), _decibel(signal, power(steps - nearest)))


def factor_in_place(matrix: npt.NDArray[np.floating[Any]]) -> None:
    """Turn a positive definite matrix into its Cholesky factor L, lower triangular: it was L L^T.

    Block by block: `numpy.linalg.cholesky` takes the memory of the matrix twice more, for one of 340 MB.
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
    """Return float64 [outputs]: what a layer's mean output lacks for its rounded weights, given its mean inputs."""
    lost: Float64 = (weights - rounded * scales[:, None]).astype(np.float64) @ means
    return lost


def _decibel(signal: float, noise: float) -> float:
    """Return the ratio in dB; 0 of no signal, 200 at most."""
    return 10 * math.log10(max(signal, 1e-30) / max(noise, signal * 1e-20, 1e-30))


def write_rounded(path: Path, layers: Mapping[str, Rounded]) -> None:
    """Write layers by name to an npz, whole or not at all."""
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "names": np.array(list(layers)),
        "decibels": np.array([(each.sqnr_db, each.nearest_sqnr_db) for each in layers.values()]),
    }
    for index, each in enumerate(layers.values()):
        arrays[f"weights_{index}"] = each.weights
        if each.mean_error is not None:
            arrays[f"mean_error_{index}"] = each.mean_error
    with whole_file(path) as scratch, scratch.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def read_rounded(path: Path) -> dict[str, Rounded]:
    """Return what `write_rounded` wrote.

    Raises:
        ArtefactError: the file is none of those.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {
                str(name): Rounded(
                    arrays[f"weights_{index}"], float(ours), float(nearest), arrays.get(f"mean_error_{index}")
                )
                for index, (name, (ours, nearest)) in enumerate(zip(arrays["names"], arrays["decibels"], strict=True))
            }
    except Exception as err:  # a flipped bit surfaces as any of a dozen kinds, from zipfile, numpy or here
        raise ArtefactError(f"{path}: no rounded weights of ours ({err}); delete it and build again") from None


def install_weights(
    int8: onnx.ModelProto, float32: onnx.ModelProto, rounded: Mapping[str, Rounded], limit: int = LIMIT
) -> dict[str, npt.NDArray[np.bool_]]:
    """Put rounded weights in the place of a QDQ model's own, in place.

    Layers that the model computes in float are left out, and outputs whose scale is not that of `scales_of`: ONNX
    Runtime widens it where a bias would not fit beside very small weights. Those keep the nearest weights.

    Returns:
        By layer, bool [outputs]: which outputs have the rounded weights now.
    """
    tensors = {tensor.name: tensor for tensor in int8.graph.initializer}
    nodes = {node.name: node for node in int8.graph.node}
    makers = {output: node for node in int8.graph.node for output in node.output}
    installed = {}
    for layer in layers_of(float32):
        maker = makers.get(nodes[layer.name].input[1]) if layer.name in nodes else None
        if layer.name not in rounded or maker is None or maker.op_type != "DequantizeLinear":
            continue
        tensor = tensors[maker.input[0]]
        scales = numpy_helper.to_array(tensors[maker.input[1]]).reshape(-1)
        wanted = scales_of(layer.weights, per_channel=scales.size > 1, limit=limit)
        same = np.isclose(scales, wanted, rtol=_SAME_SCALE, atol=0)
        outputs = np.broadcast_to(same, len(layer.weights))
        nearest = numpy_helper.to_array(tensor)
        values = rounded[layer.name].weights
        as_stored = (values.T if layer.transposed else values).reshape(layer.shape)
        chosen = outputs.reshape([-1 if axis == (1 if layer.transposed else 0) else 1 for axis in range(nearest.ndim)])
        tensor.CopyFrom(numpy_helper.from_array(np.where(chosen, as_stored, nearest), tensor.name))
        installed[layer.name] = outputs
    return installed
