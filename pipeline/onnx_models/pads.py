"""Pads with a fill value that means "no value", before a MaxPool: folded into the padding of the pool."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.onnx_models.graphs import (
    constants_of,
    integer,
    integers,
    remove_attributes,
    remove_unused,
    shapes_of,
    text,
)

# A fill value at or below this means "no value": converters write -inf, the lowest float32 or float16, -1e9, ...
_NO_VALUE = -1e4


def fold_pads(model: onnx.ModelProto) -> None:
    """Fold a Pad into the MaxPool after it, where its fill value can never be the largest of a window; in place.

    A range that included such a fill value would leave one step for all real values.
    """
    graph, constants = model.graph, constants_of(model.graph)
    pads = {node.output[0]: node for node in graph.node if node.op_type == "Pad"}
    positive = {node.output[0] for node in graph.node if node.op_type == "Relu"}
    shapes = shapes_of(model) if pads else {}
    for node in graph.node:
        if node.op_type != "MaxPool" or node.input[0] not in pads:
            continue
        pad = pads[node.input[0]]
        fill = _fill(pad, constants)
        if fill is None or not (fill <= _NO_VALUE or (pad.input[0] in positive and fill <= 0)):
            continue
        added = _spatial_pads(pad, constants, len(shapes.get(pad.input[0], [])))
        together = None if added is None else _pads_together(node, added, shapes)
        if together is None:
            continue
        remove_attributes(node, "pads", "auto_pad", "ceil_mode")
        node.attribute.append(helper.make_attribute("pads", together))
        node.input[0] = pad.input[0]
    remove_unused(graph)


def _fill(pad: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> float | None:
    """Return the fill value of a Pad, None where it is not one constant."""
    if text(pad, "mode", "constant") != "constant":
        return None
    if len(pad.input) < 3 or not pad.input[2]:
        return 0.0
    value = constants.get(pad.input[2])
    return None if value is None else float(numpy_helper.to_array(value).reshape(-1)[0])


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
    pool: onnx.NodeProto, added: list[int], shapes: Mapping[str, list[int | str | None]]
) -> list[int] | None:
    """Return the pads, begins and then ends, with which a pool that rounds down equals the Pad and the pool.

    Returns:
        None: they are not known, a window would hold only padding, or the pool returns indices, which would change.
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
                end += _ceiling(size + begin + end - reach, strides[axis], size + begin)
        found.append((added[axis] + begin, added[axis + axes] + end))
        if max(found[-1]) >= reach:
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
