"""The layers of a float32 model that have constant weights, as matrices with one row for each output."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from pipeline.onnx_models.graphs import attributes_of
from pipeline.quant.bfloat16 import Values
from pipeline.quant.graphs import MATRIX, WEIGHTED, constants
from pipeline.quant.neighbours import Pairs, weight_pairs

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LayerWeights:
    """The weights of a convolution, Gemm or MatMul, as a matrix."""

    layer: str  # name of its node
    tensor: str  # name of the initializer; several layers may share one
    matrix: Float32  # [outputs, inputs]; inputs = channels of a group * kernel height * kernel width
    shape: tuple[int, ...]  # as the model stores them
    transposed: bool  # the model stores [inputs, outputs]
    pairs: Pairs  # neighbours in a row, see `neighbours`

    @property
    def output_axis(self) -> int:
        """The axis of the stored weights that counts outputs."""
        return 1 if self.transposed else 0

    def as_stored(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a matrix shaped like `matrix` in the shape that the model stores."""
        return np.ascontiguousarray(rows.T if self.transposed else rows).reshape(self.shape)

    def as_rows(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return weights as the model stores them in the shape of `matrix`."""
        return stored.T if self.transposed else stored.reshape(len(stored), -1)


def weights_of(model: onnx.ModelProto) -> Iterator[LayerWeights]:
    """Yield the weights of every layer that has constant ones, in graph order.

    A MatMul whose constant has more than two axes, or is the left operand, is left out: its weights are not one row for
    each output. So is a layer of another type than float32, since its input cannot be quantized or copied as float32.
    """
    known = constants(model)
    for node in model.graph.node:
        if node.op_type not in WEIGHTED or node.input[1] not in known or node.input[0] in known:
            continue
        tensor = known[node.input[1]]
        if tensor.data_type != TensorProto.FLOAT:
            continue
        stored = numpy_helper.to_array(tensor)
        settings = attributes_of(node)
        if node.op_type == "Conv":
            rows, transposed = stored.reshape(len(stored), -1), False
            pairs = weight_pairs(stored.shape, settings.get("group", 1))
        elif stored.ndim == 2:
            transposed = not (node.op_type == "Gemm" and settings.get("transB", 0))
            rows = stored.T if transposed else stored
            pairs = weight_pairs(rows.shape)
        else:
            continue
        yield LayerWeights(node.name, node.input[1], rows, tuple(stored.shape), transposed, pairs)


@dataclass(frozen=True)
class Layer:
    """A convolution, Gemm or MatMul as a matrix product of its weights with columns of inputs."""

    weights: LayerWeights
    source: str  # the activation it reads
    kernel: tuple[int, int] | None  # None: a Gemm or MatMul
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    groups: int = 1  # each with inputs, and an equal share of the outputs, of its own

    @property
    def name(self) -> str:
        return self.weights.layer

    @property
    def inputs(self) -> int:
        """Of a group."""
        return int(self.weights.matrix.shape[1])

    def columns(self, values: Values, positions: int, random: np.random.Generator) -> Values:
        """Return what the layer multiplies its weights with, [n, groups * inputs] of the type of `values`, a copy.

        n is `positions` at most.

        Args:
            values: float32 [1, C, H, W] of a convolution, else [1, ..., C]: one image's input of the layer. Or
                bfloat16 as uint16, of a convolution [1, H, W, C].
        """
        found: npt.NDArray[Any]
        if self.kernel is None:
            rows: npt.NDArray[Any] = values.reshape(-1, self.inputs)
            found = rows[_choose(len(rows), positions, random)]
            return found
        windows = self._windows(values[0], values.dtype == np.uint16, positions, random)
        found = np.ascontiguousarray(windows).reshape(len(windows), -1)
        return found

    def _windows(
        self, image: npt.NDArray[Any], last: bool, positions: int, random: np.random.Generator
    ) -> npt.NDArray[Any]:
        """Return what the kernel covers at some positions, [n, C, height, width] of the kernel.

        Args:
            image: [C, H, W], or if `last` [H, W, C].
        """
        assert self.kernel is not None
        top, left, bottom, right = self.pads
        pads = [(top, bottom), (left, right)]
        if any(self.pads):
            image = np.pad(image, [*pads, (0, 0)] if last else [(0, 0), *pads])
        sizes = image.shape[:2] if last else image.shape[1:]
        spans = [(size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True)]
        height, width = ((size - span) // step + 1 for size, span, step in zip(sizes, spans, self.strides, strict=True))
        chosen = _choose(height * width, positions, random)[:, None, None]
        down = chosen // width * self.strides[0] + np.arange(0, spans[0], self.dilations[0])[:, None]
        across = chosen % width * self.strides[1] + np.arange(0, spans[1], self.dilations[1])
        found: npt.NDArray[Any] = (
            np.moveaxis(image[down, across], -1, 1) if last else np.moveaxis(image[:, down, across], 0, 1)
        )
        return found


def _choose(count: int, positions: int, random: np.random.Generator) -> npt.NDArray[np.intp]:
    """Return at most so many places out of a count of them."""
    return random.choice(count, positions, replace=False) if count > positions else np.arange(count)


def layers_of(model: onnx.ModelProto) -> Iterator[Layer]:
    """Yield the layers that can be rounded by second order, in graph order.

    Weights that several layers share are left out, and convolutions over other than two axes.
    """
    nodes = {node.name: node for node in model.graph.node}
    uses = Counter(name for node in model.graph.node for name in node.input)
    for weights in weights_of(model):
        node = nodes[weights.layer]
        settings = attributes_of(node)
        if uses[weights.tensor] > 1:
            continue
        if node.op_type in MATRIX:
            if not settings.get("transA", 0) and settings.get("alpha", 1.0) == 1.0:
                yield Layer(weights, node.input[0], None)
            continue
        if len(weights.shape) != 4 or settings.get("auto_pad", b"NOTSET") != b"NOTSET":
            continue
        yield Layer(
            weights,
            node.input[0],
            (weights.shape[2], weights.shape[3]),
            tuple(settings.get("strides", (1, 1))),
            tuple(settings.get("dilations", (1, 1))),
            tuple(settings.get("pads", (0, 0, 0, 0))),
            settings.get("group", 1),
        )


def without_weights(layer: Layer) -> Layer:
    """Return a layer with zeros for weights, of the same shape, in no memory."""
    zeros = np.broadcast_to(np.zeros((), np.float32), layer.weights.matrix.shape)
    return replace(layer, weights=replace(layer.weights, matrix=zeros))


def mapped(layer: Layer, folder: Path, least: int) -> Layer:
    """Return a layer whose weights, of at least so many bytes, are mapped from a scratch file in `folder`.

    Until they are rounded they are then in no memory, of which covariances take much.
    """
    if layer.weights.matrix.nbytes < least:
        return layer
    scratch = folder / f".weights_{hashlib.sha256(layer.name.encode()).hexdigest()[:16]}.npy"
    np.save(scratch, layer.weights.matrix)
    return replace(layer, weights=replace(layer.weights, matrix=np.load(scratch, mmap_mode="r")))
