"""Pads with a fill value that means "no value", before a MaxPool: folded into the padding of the pool."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.onnx_models.fills import NO_VALUE, fill_of, use_pads
from pipeline.onnx_models.graphs import (
    Names,
    add_constant,
    constants_of,
    integer,
    integers,
    readers_of,
    remove_attributes,
    remove_unused,
    shapes_of,
    text,
)

_ENDLESS = 1 << 62


def fold_pads(model: onnx.ModelProto) -> None:
    """Fold a Pad into the MaxPool after it, where its fill value can never be the largest of a window; in place.

    A range that included such a fill value would leave one step for all real values.
    """
    use_pads(model)
    _swap_with_activations(model)
    graph, constants = model.graph, constants_of(model.graph)
    pads = {node.output[0]: node for node in graph.node if node.op_type == "Pad"}
    positive = {node.output[0] for node in graph.node if node.op_type == "Relu"}
    shapes = shapes_of(model) if pads else {}
    for node in graph.node:
        if node.op_type != "MaxPool" or node.input[0] not in pads:
            continue
        pad = pads[node.input[0]]
        fill = fill_of(pad, constants)
        if fill is None or not (fill <= NO_VALUE or (pad.input[0] in positive and fill <= 0)):
            continue
        added = _spatial_pads(pad, constants, len(shapes.get(pad.input[0], [])))
        together = None if added is None else _pads_together(node, added, shapes)
        if together is None:
            continue
        remove_attributes(node, "pads", "auto_pad", "ceil_mode")
        node.attribute.append(helper.make_attribute("pads", together))
        node.input[0] = pad.input[0]
    remove_unused(graph)


def round_down(model: onnx.ModelProto) -> None:
    """Write the pools that round up and leave out a last window within the padding as ones that round down; in place.

    ONNX Runtime and PyTorch leave that window out, OpenVINO 2026.4 does not: its result is a row larger.
    """
    pools = [node for node in model.graph.node if node.op_type in ("MaxPool", "AveragePool")]
    shapes = shapes_of(model) if pools else {}
    for node in pools:
        nothing = [0] * 2 * len(integers(node, "kernel_shape") or [])
        counts = node.op_type == "AveragePool" and integer(node, "count_include_pad", 0)
        rule = text(node, "auto_pad", "NOTSET") or "NOTSET"
        if not integer(node, "ceil_mode", 0) or counts or rule != "NOTSET" or not any(integers(node, "pads") or []):
            continue
        together = _pads_together(node, nothing, shapes)
        if together is None or together == _pads_together(node, nothing, shapes, drops=False):
            continue
        remove_attributes(node, "pads", "ceil_mode")
        node.attribute.append(helper.make_attribute("pads", [max(size, 0) for size in together]))


def _swap_with_activations(model: onnx.ModelProto) -> None:
    """Put each Pad of no value behind the ReLU or Clip that alone reads it, in place: the fill is clipped then."""
    graph, names, constants = model.graph, Names(model), constants_of(model.graph)
    pads = {node.output[0]: node for node in graph.node if node.op_type == "Pad"}
    readers = readers_of(graph)
    for node in graph.node:
        pad = pads.get(node.input[0]) if node.op_type in ("Relu", "Clip") else None
        fill = None if pad is None else fill_of(pad, constants)
        if pad is None or fill is None or fill > NO_VALUE or len(readers[pad.output[0]]) != 1:
            continue
        low = 0.0 if node.op_type == "Relu" else _lower_bound(node, constants)
        if low is None or pad.output[0] in {value.name for value in graph.output}:
            continue
        source, between, target = pad.input[0], names.free(f"{pad.output[0]}_active"), node.output[0]
        moved, padded = onnx.NodeProto(), onnx.NodeProto()
        moved.CopyFrom(node)
        padded.CopyFrom(pad)
        moved.input[0], moved.output[0] = source, between
        padded.input[0], padded.output[0] = between, target
        padded.input[2] = add_constant(graph, names, f"{target}_fill", np.array(low, np.float32))
        pad.CopyFrom(moved)
        node.CopyFrom(padded)


def _lower_bound(clip: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> float | None:
    """Return the lower bound of a Clip; None where there is none that is a constant."""
    if len(clip.input) < 2 or clip.input[1] not in constants:
        return None
    return float(numpy_helper.to_array(constants[clip.input[1]]).reshape(-1)[0])


def _spatial_pads(pad: onnx.NodeProto, constants: Mapping[str, TensorProto], rank: int) -> list[int] | None:
    """Return the pads of a Pad's spatial axes in a pool's order; None where it pads other axes, or crops."""
    if pad.input[1] not in constants or rank < 3:
        return None
    values = numpy_helper.to_array(constants[pad.input[1]]).tolist()
    axes = list(range(rank))
    if len(pad.input) > 3 and pad.input[3]:
        if pad.input[3] not in constants:
            return None
        axes = [axis % rank for axis in numpy_helper.to_array(constants[pad.input[3]]).tolist()]
    begins, ends = [0] * rank, [0] * rank
    for axis, begin, end in zip(axes, values[: len(axes)], values[len(axes) :], strict=True):
        begins[axis], ends[axis] = begin, end
    if any(begins[:2] + ends[:2]) or min(begins + ends) < 0:
        return None
    return begins[2:] + ends[2:]


def _pads_together(
    pool: onnx.NodeProto, added: list[int], shapes: Mapping[str, list[int | str | None]], *, drops: bool = True
) -> list[int] | None:
    """Return the pads, begins and then ends, with which a pool that rounds down equals the Pad and the pool.

    Args:
        pool: the pool.
        added: the Pad's, in the pool's order.
        shapes: of the tensors.
        drops: a pool that rounds up leaves out a last window that begins in the padding.

    Returns:
        None: they are not known, too wide for a pool, or the pool returns indices, which would change.
    """
    kernel = integers(pool, "kernel_shape") or []
    axes = len(kernel)
    strides, dilations = (integers(pool, name) or [1] * axes for name in ("strides", "dilations"))
    sizes = shapes.get(pool.input[0], [])[2:]
    rule, own = text(pool, "auto_pad", "NOTSET") or "NOTSET", integers(pool, "pads") or [0] * 2 * axes
    if len(pool.output) > 1 or len(sizes) != axes or len(added) != 2 * axes:
        return None
    found = []
    for axis, size in enumerate(sizes):
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        if not isinstance(size, int):
            return None
        if rule.startswith("SAME"):
            total = max((-(-size // strides[axis]) - 1) * strides[axis] + reach - size, 0)
            begin = total // 2 if rule == "SAME_UPPER" else total - total // 2
            end = total - begin
        else:
            begin, end = (own[axis], own[axis + axes]) if rule == "NOTSET" else (0, 0)
            if integer(pool, "ceil_mode", 0):
                end += _ceiling(size + begin + end - reach, strides[axis], size + begin if drops else _ENDLESS)
        found.append((added[axis] + begin, added[axis + axes] + end))
        if max(found[-1]) >= kernel[axis]:  # ONNX Runtime takes no more, also where gaps widen the window
            return None
    return [begin for begin, _ in found] + [end for _, end in found]


def _ceiling(room: int, stride: int, last_start: int) -> int:
    """Return the padding to add at the end so that a pool that rounds down takes as many steps as one that rounds up.

    Args:
        room: the length beyond the first window.
        last_start: no window begins there or later.
    """
    steps = -(-room // stride)
    if steps * stride >= last_start:
        steps -= 1
    return max(steps * stride - room, 0)
