"""Int8 weights: their scales, rounding to the nearest step, and their place in a QDQ model.

Scales and rounding keep every pair of neighbouring weights within `neighbours.PAIR_LIMIT`, so that no x86 kernel
saturates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from pipeline.onnx_models.graphs import makers_of
from pipeline.quant.layers import LayerWeights, weights_of
from pipeline.quant.neighbours import PAIR_LIMIT, Pairs, largest_sums, row_chunks, same_sign_sums

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]

LIMIT = 127  # steps, of symmetric int8; without -128, so that weights can be stored as w - 1 (runtimes/amx.py)
_SAME_SCALE = 1e-5  # relative: the last bits of a float32


def scales_of(matrix: Float32, pairs: Pairs, *, per_channel: bool) -> Float32:
    """Return the least scales that hold every weight and every pair of neighbours.

    Args:
        matrix: float32 [outputs, inputs].
        pairs: neighbours in a row.

    Returns:
        float32 [outputs], or [1] for the whole tensor, in tensor units a step.
    """
    # Not of np.abs(matrix), which would take as much memory as the weights.
    largest = np.maximum(matrix.max(axis=1), -matrix.min(axis=1)) / np.float32(LIMIT)
    needed = np.maximum(largest, largest_sums(matrix, pairs) / PAIR_LIMIT)
    if not per_channel:
        needed = needed.max(keepdims=True)
    scales: Float32 = np.where(needed > 0, needed, 1).astype(np.float32)
    return scales


def round_to_nearest(matrix: Float32, scales: Float32, pairs: Pairs) -> Int8:
    """Return each weight rounded to the nearest step; of a pair beyond the bound, the one rounded up more loses a step.

    Args:
        matrix: float32 [outputs, inputs].
        scales: float32 [outputs] or [1], in tensor units a step.
        pairs: neighbours in a row.
    """
    rounded = np.empty(matrix.shape, np.int8)
    for rows in row_chunks(matrix.shape):
        steps = matrix[rows] / (scales[rows] if scales.size > 1 else scales)[:, None]
        rounded[rows] = bound_pairs(np.clip(np.rint(steps), -LIMIT, LIMIT), steps, pairs)
    return rounded


def bound_pairs(rounded: npt.NDArray[Any], steps: Float32, pairs: Pairs) -> Int8:
    """Return rounded weights, [outputs, inputs] in steps, with every pair within the bound: of one that sums to too
    much, the weight that was rounded up more is less, by a step at a time.

    Args:
        steps: float32 [outputs, inputs], the weights before they were rounded.
    """
    found = rounded.astype(np.float32)
    while True:
        above, below = same_sign_sums(found, pairs)
        rows, places = np.nonzero((above > PAIR_LIMIT) | (below > PAIR_LIMIT))
        if not rows.size:
            bounded: Int8 = found.astype(np.int8)
            return bounded
        first, second = pairs[places, 0], pairs[places, 1]
        excess = np.abs(found) - np.abs(steps)
        chosen = np.where(excess[rows, first] >= excess[rows, second], first, second)
        for row, place in set(zip(rows.tolist(), chosen.tolist(), strict=True)):
            found[row, place] -= np.sign(found[row, place])


def round_all_to_nearest(int8: onnx.ModelProto, float32: onnx.ModelProto, without: Collection[str] = ()) -> None:
    """Round the weights of a QDQ model again, in place: the tool that made it does not bound pairs.

    Args:
        without: names of layers that `install_weights` is called for.
    """
    for weights, tensor, scales in quantized_weights(int8, float32):
        if weights.layer in without:
            continue
        values = round_to_nearest(weights.matrix, scales, weights.pairs)
        tensor.CopyFrom(numpy_helper.from_array(weights.as_stored(values), tensor.name))


def quantized_weights(
    int8: onnx.ModelProto, float32: onnx.ModelProto
) -> Iterator[tuple[LayerWeights, TensorProto, Float32]]:
    """Yield for each layer with int8 weights in a QDQ model its float weights, the int8 tensor, and its scales."""
    tensors = {tensor.name: tensor for tensor in int8.graph.initializer}
    nodes = {node.name: node for node in int8.graph.node}
    makers = makers_of(int8.graph)
    for weights in weights_of(float32):
        maker = makers.get(nodes[weights.layer].input[1]) if weights.layer in nodes else None
        if maker is None or maker.op_type != "DequantizeLinear" or maker.input[0] not in tensors:
            continue
        yield weights, tensors[maker.input[0]], numpy_helper.to_array(tensors[maker.input[1]]).reshape(-1)


def install_weights(
    int8: onnx.ModelProto, float32: onnx.ModelProto, rounded: Mapping[str, tuple[Int8, Float32]]
) -> dict[str, npt.NDArray[np.bool_]]:
    """Replace the weights of a QDQ model by rounded ones, in place.

    Layers in float are left out, and outputs whose scale differs from the one they were rounded with: ONNX Runtime
    widens it where a bias would not fit beside very small weights. Those outputs get the nearest-rounded weights.

    Args:
        rounded: by layer int8 [outputs, inputs] and their scales, float32 [outputs] or [1].

    Returns:
        By layer, bool [outputs]: which outputs have the rounded weights now.
    """
    installed = {}
    for weights, tensor, scales in quantized_weights(int8, float32):
        if weights.layer not in rounded:
            continue
        values, wanted = rounded[weights.layer]
        outputs = np.broadcast_to(np.isclose(scales, wanted, rtol=_SAME_SCALE, atol=0), len(values))
        chosen = values
        if not outputs.all():
            chosen = np.where(outputs[:, None], values, round_to_nearest(weights.matrix, scales, weights.pairs))
        tensor.CopyFrom(numpy_helper.from_array(weights.as_stored(chosen), tensor.name))
        installed[weights.layer] = outputs
    return installed
