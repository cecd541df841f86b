"""Operands that a fixed batch has left its size in, in the form that any batch has: constants, expansions, slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pipeline.onnx_models.graphs import Names, add_constant, integer, integers_tensor

Shape = Sequence[int | str | None]
# Operators that repeat an operand of size 1 along the batch; of Gemm, the bias.
_BROADCASTING = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Sum", "Mean", "Where", "PRelu", "Gemm", "MatMul"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor"),
    }
)
_ENDLESS = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Known:
    """What a round knows."""

    shapes: dict[str, list[int | str | None]]  # with the batch free, as far as it has been freed
    at_batch: dict[str, list[int | str | None]]  # with the batch fixed by the file
    constants: dict[str, onnx.TensorProto]
    batch: int


def free_axis(shape: Shape) -> int | None:
    """Return the one axis of unknown size, the batch."""
    free = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
    return free[0] if len(free) == 1 else None


def is_batched(shape: Shape) -> bool:
    return bool(shape) and free_axis(shape) == 0


def free_slice(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, known: Known) -> bool:
    """Let a Slice that takes the whole batch, up to a number that the file fixes, take it whatever its size."""
    if len(node.input) < 3 or any(name and name not in known.constants for name in node.input[1:]):
        return False
    axis, shape = free_axis(known.shapes.get(node.input[0], [])), known.at_batch.get(node.input[0], [])
    names_given = node.input[1:]
    given = [
        numpy_helper.to_array(known.constants[name]).reshape(-1).tolist() if name else None for name in names_given
    ]
    starts, ends, axes, steps = (*given, None, None)[:4]
    if axis is None or starts is None or ends is None or not isinstance(shape[axis], int):
        return False
    along = [place % len(shape) for place in axes or range(len(starts))]
    at = along.index(axis) if axis in along else None
    if at is None or starts[at] != 0 or ends[at] != shape[axis] or (steps or [1] * len(starts))[at] != 1:
        return False
    node.input[2] = integers_tensor(graph, names, f"{node.output[0]}_ends", [*ends[:at], _ENDLESS, *ends[at + 1 :]])
    return True


def free_constants(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, known: Known) -> bool:
    """Let a constant that holds the same values for each image of the batch hold them once."""
    operands = [known.shapes.get(name, []) for name in node.input if name not in known.constants]
    from_end = {axis - len(shape) for shape in operands if (axis := free_axis(shape)) is not None}
    if known.batch == 1 or node.op_type not in _BROADCASTING or len(from_end) != 1:
        return False
    (place,) = from_end
    if node.op_type == "MatMul" and place >= -2:
        return False
    changed = False
    for position, name in enumerate(node.input):
        if name not in known.constants or (node.op_type == "Gemm" and position == 1):
            continue
        values = numpy_helper.to_array(known.constants[name])
        if values.ndim < -place or values.shape[place] != known.batch:
            continue
        one = np.take(values, [0], axis=place)
        if (values == one).all():
            node.input[position] = add_constant(graph, names, f"{name}_once", one)
            changed = True
    return changed


def free_expand(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, known: Known) -> bool:
    """Let an Expand of an activation keep the batch axis: a size of 1 there keeps the source's."""
    source, values = known.shapes.get(node.input[0], []), numpy_helper.to_array(known.constants[node.input[1]]).tolist()
    axis = free_axis(source)
    if axis is None:
        return False
    aligned = axis + len(values) - len(source)
    if known.batch == 1 or aligned < 0 or values[aligned] != known.batch:
        return False
    values[aligned] = 1
    node.input[1] = integers_tensor(graph, names, f"{node.output[0]}_shape", values)
    return True


def free_concat(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, known: Known) -> bool:
    """Repeat constants that are joined to an activation, such as a transformer's class token, for every image."""
    joined = [known.shapes.get(name, []) for name in node.input]
    activation = next((name for name, shape in zip(node.input, joined, strict=True) if is_batched(shape)), None)
    changed = False
    for position, name in enumerate(node.input):
        if activation is None or name not in known.constants:
            continue
        values = numpy_helper.to_array(known.constants[name])
        alike = values.ndim > 1 and len(values) == known.batch and (values == values[:1]).all()
        if not alike or integer(node, "axis", 0) % values.ndim == 0:
            continue
        node.input[position] = _repeat(graph, names, node, activation, values[:1])
        changed = True
    return changed


def _repeat(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, like: str, values: np.ndarray) -> str:
    """Add nodes before `node` that repeat `values`, [1, ...], along the batch of the tensor `like`; name the result."""
    repeated = names.free(f"{node.output[0]}_repeated")
    shape = shape_with_batch(graph, names, node, like, values.shape[1:])
    one = add_constant(graph, names, f"{repeated}_one", values)
    insert_before(graph, node, helper.make_node("Expand", [one, shape], [repeated], names.free(f"{node.name}_repeat")))
    return repeated


def shape_with_batch(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, like: str, rest: Sequence[int]) -> str:
    """Add nodes before `node` that make the shape [batch of the tensor `like`, *rest]; name it."""
    batch, shape = (names.free(f"{node.output[0]}_{what}") for what in ("batch", "shape"))
    others = integers_tensor(graph, names, f"{shape}_rest", rest)
    added = [
        helper.make_node("Shape", [like], [batch], names.free(f"{node.name}_batch"), start=0, end=1),
        helper.make_node("Concat", [batch, others], [shape], names.free(f"{node.name}_shape"), axis=0),
    ]
    for each in added:
        insert_before(graph, node, each)
    return shape


def insert_before(graph: onnx.GraphProto, node: onnx.NodeProto, added: onnx.NodeProto) -> None:
    place = next(index for index, each in enumerate(graph.node) if each.output[:] == node.output[:])
    graph.node.insert(place, added)
