"""Slices that take all of their input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from pipeline.onnx_models.graphs import constants_of, remove_unused, rename, shapes_of

_ENDLESS = np.iinfo(np.int32).max  # and larger: the end of a Slice, where the axis is of any size


def drop_whole_slices(model: onnx.ModelProto) -> int:
    """Remove each Slice that takes all of its input, in place; return how many.

    GhostNets cut their channels to a width that they mostly have: a copy, which runtimes then make in int8 too.

    Args:
        model: constants folded; sizes are found by shape inference.
    """
    graph = model.graph
    slices = [node for node in graph.node if node.op_type == "Slice"]
    shapes, constants = shapes_of(model) if slices else {}, constants_of(graph)
    outputs = {value.name for value in graph.output}
    dropped = [
        node
        for node in slices
        if node.output[0] not in outputs and _takes_all(node, shapes.get(node.input[0]), constants)
    ]
    for node in dropped:
        rename(graph, node.output[0], node.input[0])
        graph.node.remove(node)
    if dropped:
        remove_unused(graph)
    return len(dropped)


def _takes_all(
    node: onnx.NodeProto, shape: Sequence[int | str | None] | None, constants: Mapping[str, TensorProto]
) -> bool:
    """Tell whether a Slice (opset 10 or later) takes all of an input of known rank."""
    names = list(node.input[1:])
    if shape is None or any(name and name not in constants for name in names):
        return False
    given = [numpy_helper.to_array(constants[name]).reshape(-1).tolist() if name else None for name in names]
    starts, ends, axes, steps = (*given, None, None)[:4]
    if starts is None or ends is None:
        return False
    for start, end, axis, step in zip(
        starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True
    ):
        size = shape[axis]
        known = isinstance(size, int)
        from_first = start == 0 or (known and start <= -size)
        if step != 1 or not from_first or end < (size if known else _ENDLESS):
            return False
    return True
