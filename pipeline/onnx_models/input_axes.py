"""Inputs of images that a file declares without all four axes: one image, grey images, or each image as one row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx
from onnx import helper, numpy_helper

from pipeline.onnx_models.graphs import (
    Names,
    constants_of,
    integers,
    integers_tensor,
    rename,
)

Sizes = list[int | None]  # of axes; None where one is free

_FEW = (1, 3, 4)  # channels
# Operators that compute the same of images with and without an axis in front, beside constants of fewer axes.
_EACH_VALUE = ("Cast", "Identity", "Mul", "Div", "Add", "Sub", "Clip")
_AXES_AS_INPUT = 13  # the opset since which Squeeze and Unsqueeze read their axes


def declared(value: onnx.ValueInfoProto) -> Sizes:
    """Return the sizes of an input's axes; none where its rank is unknown."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims]


def image_sizes(graph: onnx.GraphProto, value: onnx.ValueInfoProto) -> Sizes | None:
    """Return the sizes of an image input's four axes, also where it declares fewer; None where it is no images.

    [3, H, W] and [H, W, 3] are one image, other inputs of three axes grey images [N, H, W]. One of two axes is images
    where the operators behind it make such of it.
    """
    dims = declared(value)
    if len(dims) in (0, 4):
        return dims or [None] * 4
    if len(dims) == 3:
        return [1, *dims] if _is_one_image(dims) else [dims[0], 1, *dims[1:]]
    return _unrolled(graph, value.name, dims) if len(dims) == 2 else None


def _is_one_image(dims: Sizes) -> bool:
    return dims[0] in _FEW or dims[2] in _FEW


def _unrolled(graph: onnx.GraphProto, name: str, dims: Sizes) -> Sizes | None:
    """Return the axes that Reshapes give to rows of images, where all of them give the same."""
    constants, found, waiting = constants_of(graph), list[Sizes](), [name]
    while waiting:
        each = waiting.pop()
        for node in graph.node:
            if each not in node.input:
                continue
            if node.op_type in _EACH_VALUE and _others_are_numbers(node, each, constants):
                waiting.append(node.output[0])
                continue
            if node.op_type != "Reshape" or node.input[1] not in constants:
                return None
            shape = [int(size) for size in numpy_helper.to_array(constants[node.input[1]]).reshape(-1)]
            sizes = shape[1:]
            if len(shape) != 4 or math.prod(sizes) != dims[1] or min(sizes) < 1 or not {sizes[0], sizes[2]} & {*_FEW}:
                return None
            found.append([dims[0], *sizes])
    return found[0] if found and all(each == found[0] for each in found) else None


def _others_are_numbers(node: onnx.NodeProto, name: str, constants: dict[str, onnx.TensorProto]) -> bool:
    others = [each for each in node.input if each and each != name]
    return all(each in constants and math.prod(constants[each].dims) == 1 for each in others)


def give_four_axes(model: onnx.ModelProto, value: onnx.ValueInfoProto, sizes: Sizes) -> None:
    """Let a graph read its image input with all four axes, in place.

    Args:
        sizes: what `image_sizes` gives for it; its input is declared with them.
    """
    dims = declared(value)
    if len(dims) in (0, 4):
        return
    graph, names = model.graph, Names(model)
    opset = next((int(each.version) for each in model.opset_import if each.domain == ""), 0)
    fewer = names.free(f"{value.name}_as_given")
    rename(graph, value.name, fewer)
    for output in graph.output:
        output.name = fewer if output.name == value.name else output.name
    axis = 0 if len(dims) == 3 and _is_one_image(dims) else 1
    if len(dims) == 2:
        rows = integers_tensor(graph, names, f"{fewer}_shape", [-1, math.prod(int(size or 1) for size in sizes[1:])])
        node = helper.make_node("Reshape", [value.name, rows], [fewer], names.free(fewer))
    elif opset < _AXES_AS_INPUT:
        node = helper.make_node("Squeeze", [value.name], [fewer], names.free(fewer), axes=[axis])
    else:
        axes = integers_tensor(graph, names, f"{fewer}_axes", [axis])
        node = helper.make_node("Squeeze", [value.name, axes], [fewer], names.free(fewer))
    graph.node.insert(0, node)
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for size in sizes:
        dim = shape.dim.add()
        if size is not None:
            dim.dim_value = size
    _move_down(graph, node.name, sizes, axis)


def _move_down(graph: onnx.GraphProto, name: str, sizes: Sizes, axis: int) -> None:
    """Move the node that drops an axis behind operators that need it not, and remove it with the one that adds it.

    Then nothing of one image is left in the graph, and its batch can be freed.
    """
    while True:
        node = next(each for each in graph.node if each.name == name)
        source, target = node.input[0], node.output[0]
        readers = [each for each in graph.node if target in each.input]
        if len(readers) != 1 or any(value.name == target for value in graph.output):
            return
        reader, constants = readers[0], constants_of(graph)
        moved = _moved(reader, sizes, axis)
        if moved is not None and _makes(reader, constants, moved, axis):
            added = reader.output[0]
            graph.node.remove(reader)
            graph.node.remove(node)
            rename(graph, added, source)
            return
        if moved is None or not _passes(reader, target, constants, axis):
            return
        sizes = moved
        given, behind = reader.output[0], f"{target}_{reader.output[0]}"
        if reader.op_type == "Transpose":
            perm = integers(reader, "perm") or [2, 1, 0]
            del reader.attribute[:]
            reader.attribute.append(helper.make_attribute("perm", [0, *(each + 1 for each in perm)]))
        reader.input[:] = [source if each == target else each for each in reader.input]
        reader.output[0] = behind
        node.input[0], node.output[0] = behind, given
        moving = onnx.NodeProto()
        moving.CopyFrom(node)
        graph.node.remove(node)
        place = next(index for index, each in enumerate(graph.node) if each.output[:] == [behind])
        graph.node.insert(place + 1, moving)


def _moved(reader: onnx.NodeProto, sizes: Sizes, axis: int) -> Sizes | None:
    """Return the sizes of the images behind a reader; None where it is a Transpose that does not fit."""
    if reader.op_type != "Transpose":
        return sizes
    perm = integers(reader, "perm") or [2, 1, 0]
    return [sizes[0], *(sizes[each + 1] for each in perm)] if axis == 0 and len(perm) == 3 else None


def _passes(reader: onnx.NodeProto, name: str, constants: dict[str, onnx.TensorProto], axis: int) -> bool:
    """Tell whether an operator may stand before the axis is dropped."""
    if reader.op_type == "Transpose":
        return axis == 0
    if reader.op_type not in _EACH_VALUE:
        return False
    others = [each for each in reader.input if each and each != name]
    most = 3 if axis == 0 else 0
    return all(each in constants and _is_small(constants[each], most) for each in others)


def _is_small(tensor: onnx.TensorProto, most: int) -> bool:
    return math.prod(tensor.dims) == 1 or len(tensor.dims) <= most


def _makes(reader: onnx.NodeProto, constants: dict[str, onnx.TensorProto], sizes: Sizes, axis: int) -> bool:
    """Tell whether an operator gives images the four axes of `sizes` again."""
    if reader.op_type == "Unsqueeze":
        axes = integers(reader, "axes")
        if axes is None and len(reader.input) > 1 and reader.input[1] in constants:
            axes = [int(each) for each in numpy_helper.to_array(constants[reader.input[1]]).reshape(-1)]
        return axes is not None and [each % 4 for each in axes] == [axis]
    if reader.op_type != "Reshape" or len(reader.input) < 2 or reader.input[1] not in constants:
        return False
    shape: Sequence[int] = [int(each) for each in numpy_helper.to_array(constants[reader.input[1]]).reshape(-1)]
    fits = [size is not None and each in (size, -1) for each, size in zip(shape[1:], sizes[1:], strict=False)]
    return len(shape) == 4 and all(fits) and shape[0] in (-1, 0, 1, sizes[0])
