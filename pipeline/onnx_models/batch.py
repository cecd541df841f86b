"""A free batch axis: constants that an export with a fixed batch contains are made to follow the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pipeline.onnx_models import sizes
from pipeline.onnx_models.batch_operands import (
    Known,
    Shape,
    free_axis,
    free_concat,
    free_constants,
    free_expand,
    free_slice,
    insert_before,
    is_batched,
    shape_with_batch,
)
from pipeline.onnx_models.graphs import (
    Names,
    add_constant,
    constants_of,
    integer,
    integers,
    integers_tensor,
    remove_attributes,
    remove_unused,
    shapes_of,
)
from pipeline.onnx_models.signature import BATCH

# One round frees every shape whose source is free already: this limit only guards against a bug.
_MOST_ROUNDS = 1000


def free_batch(model: onnx.ModelProto, batch: int | None) -> None:
    """Let the batch axis pass through reshapes, expansions and concatenations with constant shapes, in place.

    Args:
        model: whose input is declared [N, C, H, W].
        batch: fixed by the file; None: none is fixed, which counts as 1.
    """
    size = batch or 1
    at_batch = _shapes_at(model, size)
    names, done = Names(model), set[str]()
    for _ in range(_MOST_ROUNDS):
        if sizes.write_sizes(model):
            at_batch = _shapes_at(model, size)
        known = Known(shapes_of(model), at_batch, constants_of(model.graph), size)
        stale: set[str] = set()  # depend on a node changed in this round: their shapes are known in the next
        for node in list(model.graph.node):
            if not stale.isdisjoint(node.input) or (
                node.output[0] not in done and _free(model.graph, names, node, known, done)
            ):
                stale.update(node.output)
        if not stale:
            break
    remove_unused(model.graph)


def _free(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, known: Known, done: set[str]) -> bool:
    """Free one node, and record in `done` that it is finished; tell whether it changed."""
    changed = False
    if node.op_type == "Reshape" and node.input[1] in known.constants:
        if free_axis(known.shapes.get(node.input[0], [])) is None:
            return False
        done.add(node.output[0])
        return _free_reshape(graph, names, node, known)
    if node.op_type == "Reshape":
        changed = _settle_reshape(graph, names, node, known)
    elif node.op_type == "Resize":
        changed = _free_resize(graph, names, node, known.constants, known.batch)
    elif node.op_type == "Expand" and node.input[1] in known.constants:
        return free_expand(graph, names, node, known)
    elif node.op_type == "Concat":
        changed = free_concat(graph, names, node, known)
    elif node.op_type == "Gather" and node.input[1] in known.constants:
        changed = _free_gather(graph, names, node, known)
    elif node.op_type == "Slice":
        changed = free_slice(graph, names, node, known)
    else:
        changed = free_constants(graph, names, node, known)
    if changed:
        done.add(node.output[0])
    return changed


def _free_reshape(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, known: Known) -> bool:
    values = numpy_helper.to_array(known.constants[node.input[1]]).tolist()
    freed = _freed(node, known.shapes[node.input[0]], values, known.at_batch, known.batch)
    if freed == values:
        return False
    if 0 in values and integer(node, "allowzero", 0):  # no elements: -1 has no meaning
        node.input[1] = shape_with_batch(graph, names, node, node.input[0], values[1:])
    else:
        remove_attributes(node, "allowzero")
        node.input[1] = integers_tensor(graph, names, f"{node.output[0]}_shape", freed)
    return True


def _settle_reshape(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, known: Known) -> bool:
    """Write down a computed shape that keeps the batch and leaves one size to be found, as torch's `flatten(2)` does.

    Shape inference does not divide by the batch, so that it finds no size behind that.
    """
    before, after = known.shapes.get(node.input[0], []), known.shapes.get(node.output[0], [])
    sizes = known.at_batch.get(node.output[0], [])[1:]
    left = [size for size in after[1:] if not isinstance(size, int)]
    if not is_batched(before) or len(left) != 1 or after[0] != before[0] or len(sizes) != len(after) - 1:
        return False
    settled = [size for size in sizes if isinstance(size, int)]
    of_image = [size for size in before[1:] if isinstance(size, int)]
    if len(settled) != len(sizes) or math.prod(settled) != math.prod(of_image) or 0 in settled:
        return False
    remove_attributes(node, "allowzero")
    node.input[1] = integers_tensor(graph, names, f"{node.output[0]}_shape", [0, *settled])
    return True


def _free_gather(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, known: Known) -> bool:
    """Let a Gather over all values of a batch, which torch's as_strided becomes, pick the same values of each image.

    Its constant indices are [batch, ...]; those of consecutive images differ by the number of values of an image.
    """
    before, flat = known.at_batch.get(node.input[0], []), known.shapes.get(node.input[0], [])
    places = numpy_helper.to_array(known.constants[node.input[1]])
    batch = known.batch
    if integer(node, "axis", 0) != 0 or len(before) != 1 or not isinstance(before[0], int) or free_axis(flat) is None:
        return False
    if before[0] % batch or places.ndim < 2 or len(places) != batch:
        return False
    values = before[0] // batch  # of an image
    behind = values * np.arange(batch).reshape(-1, *[1] * (places.ndim - 1))
    if not ((places - behind == places[:1]).all() and (places[0] >= 0).all() and (places[0] < values).all()):
        return False
    rows = names.free(f"{node.output[0]}_rows")
    shape = integers_tensor(graph, names, f"{rows}_shape", [-1, values])
    insert_before(graph, node, helper.make_node("Reshape", [node.input[0], shape], [rows], names.free(f"{rows}_node")))
    node.input[:] = [rows, add_constant(graph, names, f"{node.output[0]}_places", places[0])]
    remove_attributes(node, "axis")
    node.attribute.append(helper.make_attribute("axis", 1))
    return True


def keep_batch_in_squeezes(model: onnx.ModelProto) -> None:
    """Add the axes to each Squeeze without them, in place, so that a batch of one image keeps its axis.

    Args:
        model: of opset 13 or later, whose input is declared [N, C, H, W].
    """
    names = Names(model)
    for node in [node for node in model.graph.node if node.op_type == "Squeeze" and len(node.input) == 1]:
        shape = shapes_of(model).get(node.input[0], [])  # known only when the Squeezes before it have their axes
        if free_axis(shape) is not None:
            axes = [axis for axis, size in enumerate(shape) if size == 1]
            node.input.append(integers_tensor(model.graph, names, f"{node.output[0]}_axes", axes))


def _shapes_at(model: onnx.ModelProto, batch: int) -> dict[str, list[int | str | None]]:
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    dim.dim_value = batch
    shapes = shapes_of(model)
    dim.dim_param = BATCH
    return shapes


def _freed(
    node: onnx.NodeProto, source: Shape, values: list[int], at_batch: dict[str, list[int | str | None]], batch: int
) -> list[int]:
    """Return the shape to reshape to, with the batch left open.

    In memory, as many elements precede the batch axis in the result as in the source. The axis of the result that
    begins there, and whose size is a multiple of the batch, contains the batch.
    """
    axis = free_axis(source)
    before, after = at_batch.get(node.input[0], []), at_batch.get(node.output[0], [])
    if axis is None or len(before) != len(source) or len(after) != len(values):
        return values
    sizes_before = [size for size in before if isinstance(size, int)]
    sizes = [size for size in after if isinstance(size, int)]
    if len(sizes_before) != len(before) or len(sizes) != len(after):
        return values
    behind = math.prod(sizes_before[:axis])
    carriers = [
        index for index in range(len(sizes)) if math.prod(sizes[:index]) == behind and sizes[index] % batch == 0
    ]
    if not carriers:
        return values
    carrier = carriers[0]
    if _splits_views(values, sizes, carrier, sizes_before[axis], batch):
        return values
    copies = not integer(node, "allowzero", 0)
    if values[carrier] == -1 or (values[carrier] == 0 and copies and carrier == axis):
        return values
    # 0 copies the source's size, so that shape inference still knows it as the batch; -1 takes what remains.
    sizes[carrier] = 0 if carrier == axis and sizes[carrier] == sizes_before[axis] and 0 not in sizes else -1
    return sizes


def _splits_views(values: Sequence[int], sizes: Sequence[int], carrier: int, rows: int, batch: int) -> bool:
    """Tell whether rows, those of several views of each image one after another, become [views, -1 for the batch, ...].

    So do networks that average over an image and its mirror image, put together along the batch.
    """
    behind = carrier + 1
    is_left = values[carrier] > 1 and len(values) > behind and values[behind] == -1 and sizes[behind] == batch
    return is_left and values[carrier] * batch == rows


def _free_resize(
    graph: onnx.GraphProto,
    names: Names,
    node: onnx.NodeProto,
    constants: dict[str, onnx.TensorProto],
    batch: int,
) -> bool:
    """Let a Resize to a constant size [N, C, H, W] take its batch from its input."""
    if len(node.input) < 4 or node.input[3] not in constants or integers(node, "axes") is not None:
        return False
    sizes = numpy_helper.to_array(constants[node.input[3]]).tolist()
    if sizes[0] != batch:
        return False
    node.input[3] = shape_with_batch(graph, names, node, node.input[0], sizes[1:])
    return True
