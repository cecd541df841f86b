"""Axes in the form that runtimes read alike.

Pad and Resize with an `axes` attribute or input (opset 18) are rewritten for all axes: ONNX Runtime's optimizer
misreads these axes after it has permuted a tensor, and refuses the model or takes wrong sizes.

A Gather by constants counts its axis from the end. One that reorders the channels, as channel shuffles do, OpenVINO
moves into the weights of the convolution after it, by the inverse of the order; it does so where the axis is 1 only
(findings/gather-into-convolution.sh).

Slopes of a PRelu get as many axes as its input has.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

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
    text,
)

Constants = Mapping[str, onnx.TensorProto]


def name_all_axes(model: onnx.ModelProto, batch: int | None) -> None:
    """Rewrite each Pad and Resize with constant axes for all axes, in place; those that keep the aspect ratio stay.

    Args:
        model: constants folded, whose input is declared [N, C, H, W].
        batch: fixed by the file; the sizes of a Resize get it, or 1, on the batch axis.
    """
    names, shapes, constants = Names(model), shapes_of(model), constants_of(model.graph)
    for node in model.graph.node:
        shape = shapes.get(node.input[0], []) if node.input else []
        if shape and node.op_type == "Pad" and len(node.input) > 3:
            _name_axes_of_pad(model.graph, names, node, constants, len(shape))
        elif shape and node.op_type == "Resize" and integers(node, "axes") is not None:
            sizes = [size if isinstance(size, int) else batch or 1 for size in shape]
            known = all(isinstance(size, int) for size in shape[1:])
            if known and text(node, "keep_aspect_ratio_policy", "stretch") == "stretch":
                _name_axes_of_resize(model.graph, names, node, constants, sizes)


def count_gather_axes_from_end(model: onnx.ModelProto) -> None:
    """Count the axis of each Gather by constants from the end, in place, where the rank of its input is known."""
    constants, shapes = constants_of(model.graph), shapes_of(model)
    for node in model.graph.node:
        if node.op_type != "Gather" or node.input[1] not in constants:
            continue
        axis, rank = integer(node, "axis", 0), len(shapes.get(node.input[0], []))
        if 0 < axis < rank:
            remove_attributes(node, "axis")
            node.attribute.append(helper.make_attribute("axis", axis - rank))


def _name_axes_of_pad(
    graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, constants: Constants, rank: int
) -> None:
    if node.input[1] not in constants or node.input[3] not in constants:
        return
    given, axes = (numpy_helper.to_array(constants[node.input[at]]).reshape(-1) for at in (1, 3))
    pads = np.zeros((2, rank), np.int64)
    pads[:, axes] = given.reshape(2, len(axes))
    node.input[1] = integers_tensor(graph, names, f"{node.output[0]}_pads", pads.reshape(-1).tolist())
    del node.input[3:]
    if not node.input[2]:
        del node.input[2:]


def _name_axes_of_resize(
    graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, constants: Constants, sizes: list[int]
) -> None:
    axes = integers(node, "axes") or []
    for at, full in ((2, np.ones(len(sizes), np.float32)), (3, np.array(sizes))):
        if len(node.input) > at and node.input[at]:
            if node.input[at] not in constants:
                return
            values: npt.NDArray[np.generic] = numpy_helper.to_array(constants[node.input[at]])
            if not values.size:
                continue
            full[axes] = values
            node.input[at] = add_constant(graph, names, f"{node.output[0]}_{'sizes' if at == 3 else 'scales'}", full)
    remove_attributes(node, "axes")


def give_slopes_all_axes(model: onnx.ModelProto) -> None:
    """Give the constant slopes of each PRelu as many axes as its input has, in place, where the rank is known.

    OpenVINO 2026.4 takes a slope of shape [C] along axis 1, and not along the last one, where both have C values
    (findings/prelu-slopes-by-count.sh).
    """
    names, constants, shapes = Names(model), constants_of(model.graph), shapes_of(model)
    for node in model.graph.node:
        if node.op_type != "PRelu" or node.input[1] not in constants:
            continue
        slopes, rank = numpy_helper.to_array(constants[node.input[1]]), len(shapes.get(node.input[0], []))
        if slopes.size > 1 and slopes.ndim < rank:
            whole = slopes.reshape([1] * (rank - slopes.ndim) + list(slopes.shape))
            node.input[1] = add_constant(model.graph, names, f"{node.input[1]}_of_all_axes", whole)
    remove_unused(model.graph)
