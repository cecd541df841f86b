"""Cross-layer equalization: channels of one activation share a scale, so they are rescaled to similar ranges.

The layers that write a channel divide their weights by its factor and those that read it multiply theirs; ReLU, pooling
and addition let the factor through, so a residual stream is rescaled as one. The float model computes the same
function.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv:1906.04721), 4.1,
extended to residual streams, with measured ranges in the place of weight ranges, and by the square root of their ratio:
with the whole ratio, the weights' error grows by more than the activations' error falls.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx

from pipeline.quant.streams import FACTORS, NORM, WeightEditor, streams

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
    for stream in streams(model, FACTORS):
        ratios = [
            largest[name] / largest[name].max() for name in stream.tensors if name in largest and largest[name].any()
        ]
        if not ratios:
            continue
        factors = np.maximum(np.max(ratios, axis=0), _LEAST_RATIO) ** STRENGTH
        for node in stream.writers:
            _divide_outputs(editor, node, factors)
        for node in stream.readers:
            _multiply_inputs(editor, node, factors)
        spread[stream.tensors[0]] = float(factors.max() / factors.min())
    editor.finish()
    return spread


def _divide_outputs(editor: WeightEditor, node: onnx.NodeProto, factors: Float64) -> None:
    for position in (1, 2) if node.op_type == NORM else range(1, len(node.input)):
        values = editor.own(node, position)
        values /= factors.reshape(-1, *[1] * (values.ndim - 1))


def _multiply_inputs(editor: WeightEditor, node: onnx.NodeProto, factors: Float64) -> None:
    weights = editor.own(node, 1)
    if node.op_type == NORM:
        weights *= factors
        mean = editor.own(node, 3)
        mean /= factors
    else:
        weights *= factors.reshape(1, -1, *[1] * (weights.ndim - 2))


def scaled_tensors(model: onnx.ModelProto, wanted: Collection[str]) -> Iterator[str]:
    """Yield the tensors of `wanted` whose channels' ranges `equalize` needs."""
    for stream in streams(model, FACTORS):
        yield from (name for name in stream.tensors if name in wanted)
