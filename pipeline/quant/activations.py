"""ReLU and Clip in an int8 model: removed where the quantizer after them gives the same levels without them, else kept.

A quantizer saturates at both ends of its range. Clipping values to `low` and `high` before it changes nothing exactly
where it maps `low` to its lowest level and `high` to its highest. For a ReLU that means a zero point of 0; for
Clip(0.5, 3) it never holds, since every range contains zero.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from pipeline.onnx_models.graphs import makers_of, readers_of
from pipeline.quant.graphs import constants
from pipeline.quant.placement import ACTIVATIONS
from pipeline.quant.qmath import Range
from pipeline.runtimes.float_form import mark_clipping

# Relative widening of a range: a bound of a Clip that falls midway between two levels then rounds outwards.
_INWARDS = 1e-4
_LEVELS = 255  # steps of a uint8 activation
_BEYOND = 0.01  # of a level, by which a bound is put beyond it: more than the float32 rounding of 255 levels
_LEAST_STEPS = 8  # from zero to a bound: with fewer, putting it on a level can widen the range by an eighth or more

Bounds = tuple[float, float]


def bounds_of(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> Bounds | None:
    """Return the two values at which a ReLU or Clip clips, infinite where it does not; None where they are computed.

    Args:
        known: the model's constants by name.
    """
    if node.op_type == "Relu":
        return 0.0, math.inf
    attributes = {each.name: each.f for each in node.attribute}  # up to opset 10
    bounds = [attributes.get("min", -math.inf), attributes.get("max", math.inf)]
    for position, name in enumerate(node.input[1:3]):
        if name and name not in known:
            return None
        if name:
            bounds[position] = float(numpy_helper.to_array(known[name]).reshape(()))
    low, high = bounds
    return min(low, high), high  # of crossed bounds the upper one wins


def within_bounds(covered: Range, bounds: Bounds | None) -> Range:
    """Return a range for the output of a ReLU or Clip whose quantizer clips at the same values, where there is one.

    A ReLU's begins at 0 exactly: with a zero point of 1, ONNX Runtime would compute the ReLU in float. Where zero lies
    outside the bounds, the nearer bound is put on a level, since a large share of the values may equal it.
    """
    if bounds is None:
        return covered
    low, high = max(covered.low, min(bounds[0], 0.0)), min(covered.high, max(bounds[1], 0.0))
    if low < 0.0 < high:
        low, high = low * (1 - _INWARDS), high * (1 - _INWARDS)
    elif 0.0 < bounds[0] < high:
        high = _with_level_at(bounds[0], high)
    elif low < bounds[1] < 0.0:
        low = -_with_level_at(-bounds[1], -low)
    return Range(low, high)


def covered_ranges(model: onnx.ModelProto, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Return what quantizers cover, by tensor: the ranges found, those of ReLUs and Clips `within_bounds`."""
    known = constants(model)
    bounds = {node.output[0]: bounds_of(node, known) for node in model.graph.node if node.op_type in ACTIVATIONS}
    return {name: within_bounds(covered, bounds.get(name)) for name, covered in ranges.items()}


def _with_level_at(bound: float, extent: float) -> float:
    """Return how far a range must go from zero, at least `extent`, to have a level at `bound`."""
    steps = math.floor(_LEVELS * bound / extent)
    return bound * _LEVELS / steps if steps >= _LEAST_STEPS else extent


def remove_redundant(model: onnx.ModelProto, kept: Collection[str]) -> None:
    """Remove the ReLUs and Clips of a QDQ model whose quantizer clips at the same values, in place, and note which.

    Args:
        kept: names of nodes to be left as they are.
    """
    graph = model.graph
    candidates = [node for node in graph.node if node.op_type in ACTIVATIONS and node.name not in kept]
    mark_clipping(model, [node.output[0] for node in candidates if _remove_one(model, node)])
    put_on_levels(model)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def put_on_levels(model: onnx.ModelProto) -> None:
    """Move the bounds of the Clips of a QDQ model to the levels that their quantizer rounds them to, in place.

    No level changes. OpenVINO 2026.4 merges such a Clip with its quantizer and rounds its lower bound up and its upper
    bound down, so that a bound of 11.000001 levels became 12: the bounds are put a little beyond their levels.
    """
    known, readers = constants(model), readers_of(model.graph)
    taken = set(known)
    for node in [node for node in model.graph.node if node.op_type == "Clip"]:
        bounds, after = bounds_of(node, known), readers.get(node.output[0], [])
        if bounds is None or not after or any(reader.op_type != "QuantizeLinear" for reader in after):
            continue
        scale, zero_point = (numpy_helper.to_array(known[name]) for name in after[0].input[1:3])
        limits = np.iinfo(zero_point.dtype)
        levels = quantize(np.array(bounds, np.float32), scale, zero_point)
        for position, (level, beyond) in enumerate(zip(levels, (-_BEYOND, _BEYOND), strict=True), start=1):
            if position < len(node.input) and node.input[position] and limits.min < level < limits.max:
                value = (np.float64(level) - int(zero_point) + beyond) * np.float64(scale)
                name = f"{node.name}_bound_{position}"
                while name in taken:
                    name += "_"
                taken.add(name)
                model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
                node.input[position] = name


def _remove_one(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Remove a ReLU or Clip if its quantizer clips at the same values; return whether it does."""
    graph = model.graph
    known = constants(model)
    readers = readers_of(graph)
    makers = makers_of(graph)
    bounds = bounds_of(node, known)
    after = readers.get(node.output[0], [])
    if bounds is None or [reader.op_type for reader in after] != ["QuantizeLinear"]:
        return False
    if any(value.name == node.output[0] for value in graph.output) or not _cuts_at(after[0], bounds, known):
        return False
    source, removed = node.input[0], [node]
    maker = makers.get(source)
    if maker is not None and maker.op_type == "DequantizeLinear" and maker.input[0] in makers:
        quantizer = makers[maker.input[0]]
        if len(readers[source]) > 1 or len(readers[maker.input[0]]) > 1:
            return False
        source = quantizer.input[0]
        removed += [quantizer, maker]
    # The producer's output takes the name of the removed node's; a network's input keeps its own.
    if source not in makers or len(readers[source]) > 1 or any(value.name == source for value in graph.output):
        return False
    outputs = makers[source].output
    outputs[list(outputs).index(source)] = node.output[0]
    for each in removed:
        graph.node.remove(each)
    for value in [value for value in graph.value_info if value.name == source]:
        graph.value_info.remove(value)
    return True


def _cuts_at(quantizer: onnx.NodeProto, bounds: Bounds, known: Mapping[str, onnx.TensorProto]) -> bool:
    """Tell whether a quantizer gives its least level at the lower bound and its highest at the upper one."""
    scale, zero_point = (numpy_helper.to_array(known[name]) for name in quantizer.input[1:3])
    limits = np.iinfo(zero_point.dtype)
    levels = quantize(np.array(bounds, np.float32), scale, zero_point)
    return bool(levels[0] == limits.min and levels[1] == limits.max)


def quantize(
    values: npt.NDArray[np.float32], scale: npt.NDArray[np.float32], zero_point: npt.NDArray[np.integer]
) -> npt.NDArray[np.float32]:
    """Return the levels of values, as QuantizeLinear computes them: float32, whole numbers within the type's limits."""
    limits = np.iinfo(zero_point.dtype)
    levels: npt.NDArray[np.float32] = np.clip(
        np.rint(values / scale) + zero_point.astype(np.float32), limits.min, limits.max
    )
    return levels
