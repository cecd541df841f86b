"""Cross-layer equalization: channels of one activation share a scale, so they are rescaled to similar ranges.

The layers that write a channel divide their weights by its factor and those that read it multiply theirs; ReLU, pooling
and addition let the factor through, so a residual stream is rescaled as one. The float model computes the same
function.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv:1906.04721), 4.1,
extended to residual streams, with measured ranges in the place of weight ranges, and by the square root of their ratio:
with the whole ratio, the weights' error grows by more than the activations' error falls.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from pipeline.onnx_models.graphs import attributes_of, readers_of
from pipeline.quant import bfloat16
from pipeline.quant.graphs import MATRIX, constants
from pipeline.quant.streams import FACTORS, NORM, WeightEditor, find_streams, multiply_inputs

Float64 = npt.NDArray[np.float64]

STRENGTH = 0.5  # exponent of the ratio of ranges
_LEAST_RATIO = 1e-2  # of a channel's range to the widest; a channel that is rarely active must not get huge weights


def equalize(model: onnx.ModelProto, largest: Mapping[str, Float64]) -> dict[str, float]:
    """Rescale the channels of every stream in place.

    Args:
        model: float32, batch norms folded.
        largest: float64 [channels] by tensor name, the largest magnitude of each channel of an activation;
            activations that will not be quantized may be left out.

    Returns:
        By the name of each stream's first tensor the ratio of its widest to its narrowest factor.
    """
    editor = WeightEditor(model)
    spread = {}
    for stream in find_streams(model, FACTORS):
        seen = [largest[name] for name in stream.tensors if name in largest and largest[name].any()]
        if not seen:
            continue
        factors = _factors(seen)
        for node in stream.writers:
            _divide_outputs(editor, node, factors)
        for node in stream.readers:
            multiply_inputs(editor, node, factors)
        spread[stream.tensors[0]] = float(factors.max() / factors.min())
    for norm, products in _normed(model):
        if norm.output[0] in largest and largest[norm.output[0]].any():
            factors = _factors([largest[norm.output[0]]])
            for position in range(1, len(norm.input)):
                values = editor.own(norm, position)
                values /= factors
            for node in products:
                weights = editor.own(node, 1)
                weights *= factors if _has_rows(node) else factors[:, None]
            spread[norm.output[0]] = float(factors.max() / factors.min())
    editor.finish()
    return spread


def _divide_outputs(editor: WeightEditor, node: onnx.NodeProto, factors: Float64) -> None:
    for position in (1, 2) if node.op_type == NORM else range(1, len(node.input)):
        values = editor.own(node, position)
        values /= factors.reshape(-1, *[1] * (values.ndim - 1))


def _factors(largest: Sequence[Float64]) -> Float64:
    """Return what each channel is divided by: of what some tensors hold at most, those without any left aside."""
    ratios = [each / each.max() for each in largest]
    factors: Float64 = np.maximum(np.max(ratios, axis=0), _LEAST_RATIO) ** STRENGTH
    return factors


def _normed(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, list[onnx.NodeProto]]]:
    """Yield each LayerNormalization over the last axis that only products with constant matrices read, with these."""
    known, readers = constants(model), readers_of(model.graph)
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        if node.op_type != "LayerNormalization" or attributes_of(node).get("axis", -1) != -1 or len(node.output) > 1:
            continue
        products = readers.get(node.output[0], [])
        constant = all(name in known and len(known[name].dims) == 1 for name in node.input[1:])
        if constant and products and node.output[0] not in outputs and all(map(_Multiplies(node, known), products)):
            yield node, products


@dataclass(frozen=True)
class _Multiplies:
    """Whether a node multiplies the rows of an activation by a constant matrix."""

    norm: onnx.NodeProto
    known: Mapping[str, onnx.TensorProto]

    def __call__(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in MATRIX or attributes_of(node).get("transA", 0) or node.input[0] != self.norm.output[0]:
            return False
        return node.input[1] in self.known and len(self.known[node.input[1]].dims) == 2


def _has_rows(node: onnx.NodeProto) -> bool:
    """Tell whether a matrix is stored with a row for each output."""
    return bool(node.op_type == "Gemm" and attributes_of(node).get("transB", 0))


def scaled_tensors(model: onnx.ModelProto, wanted: Collection[str]) -> dict[str, int]:
    """Return the tensors of `wanted` whose channels' ranges `equalize` needs, and the axis of their channels."""
    found = {name: 1 for stream in find_streams(model, FACTORS) for name in stream.tensors if name in wanted}
    return found | {norm.output[0]: -1 for norm, _ in _normed(model) if norm.output[0] in wanted}


def channel_extremes(values: npt.NDArray[np.float32 | np.uint16], axis: int) -> Float64:
    """Return float64 [channels], the largest magnitude of each.

    Args:
        values: float32 [1, ...], or bfloat16 as uint16, with the channels of [1, C, H, W] last.
        axis: of the channels in float32.
    """
    if values.dtype == np.uint16:
        return bfloat16.magnitudes(values.view(np.uint16), -1 if values.ndim == 4 else axis)
    axes = tuple(each for each in range(values.ndim) if each != axis % values.ndim)
    found: Float64 = np.maximum(values.max(axis=axes), -values.min(axis=axes)).astype(np.float64)
    return found
