"""What brings values that mean "no value" to a MaxPool in another way than by one Pad, written as a Pad."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.onnx_models.graphs import (
    Names,
    add_constant,
    constants_of,
    integer,
    integers_tensor,
    makers_of,
    replace_nodes,
    shapes_of,
    text,
)

# A value at or below this means "no value": converters write -inf, the lowest float32 or float16, -1e9, ...
NO_VALUE = -1e4
_END = np.iinfo(np.int64).max

Constants = Mapping[str, TensorProto]


def use_pads(model: onnx.ModelProto) -> None:
    """Write a Concat of a map and blocks of no value as a Pad, and a Pad that crops too as a Slice and a Pad, in place.

    Args:
        model: opset 13 or later, constants folded.
    """
    graph = model.graph
    wanted = {node.input[0] for node in graph.node if node.op_type in ("MaxPool", "Relu", "Clip", "Pad")}
    made = [node for node in graph.node if node.output[0] in wanted]
    if any(node.op_type == "Concat" for node in made):
        _pads_of_concats(model, wanted)
    if any(node.op_type == "Pad" for node in made):
        _split_crops(model, wanted)


def fill_of(pad: onnx.NodeProto, constants: Constants) -> float | None:
    """Return the fill value of a Pad, None where it is not one constant."""
    if text(pad, "mode", "constant") != "constant":
        return None
    if len(pad.input) < 3 or not pad.input[2]:
        return 0.0
    value = constants.get(pad.input[2])
    return None if value is None else float(numpy_helper.to_array(value).reshape(-1)[0])


def _pads_of_concats(model: onnx.ModelProto, wanted: set[str]) -> None:
    graph, names, constants, makers = model.graph, Names(model), constants_of(model.graph), makers_of(model.graph)
    shapes = shapes_of(model)
    for node in graph.node:
        rank = len(shapes.get(node.output[0], []))
        if node.op_type != "Concat" or node.output[0] not in wanted or rank < 3:
            continue
        axis = integer(node, "axis", 0) % rank
        blocks = [_block(name, constants, makers) for name in node.input]
        maps = [at for at, block in enumerate(blocks) if block is None]
        fills = {block for block in blocks if block is not None}
        lengths = [shapes.get(name, [None] * rank)[axis] for name in node.input]
        known = [length for length in lengths if isinstance(length, int)]
        if axis < 2 or len(maps) != 1 or len(fills) != 1 or len(known) != len(lengths) or max(fills) > NO_VALUE:
            continue
        pads = [0] * 2 * rank
        pads[axis], pads[rank + axis] = sum(known[: maps[0]]), sum(known[maps[0] + 1 :])
        source, target = node.input[maps[0]], node.output[0]
        added = integers_tensor(graph, names, f"{target}_pads", pads)
        fill = add_constant(graph, names, f"{target}_fill", np.array(fills.pop(), np.float32))
        node.CopyFrom(helper.make_node("Pad", [source, added, fill], [target], node.name))


def _block(name: str, constants: Constants, makers: Mapping[str, onnx.NodeProto]) -> float | None:
    """Return the value that a tensor holds everywhere, None where there is no such constant."""
    node = makers.get(name)
    while name not in constants and node is not None and node.op_type in ("Expand", "Tile", "Identity"):
        name = node.input[0]
        node = makers.get(name)
    if name in constants:
        values = numpy_helper.to_array(constants[name])
    elif node is not None and node.op_type == "ConstantOfShape":
        value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        values = np.zeros(1) if value is None else numpy_helper.to_array(value)
    else:
        return None
    return float(values.reshape(-1)[0]) if values.size and (values == values.reshape(-1)[0]).all() else None


def _split_crops(model: onnx.ModelProto, wanted: set[str]) -> None:
    graph, names, constants, nodes = model.graph, Names(model), constants_of(model.graph), list[onnx.NodeProto]()
    for node in graph.node:
        fill = fill_of(node, constants) if node.op_type == "Pad" and node.output[0] in wanted else None
        if fill is not None and fill <= NO_VALUE and node.input[1] in constants and len(node.input) < 4:
            pads = numpy_helper.to_array(constants[node.input[1]])
            rank = pads.size // 2
            cropped = [axis for axis in range(rank) if min(pads[axis], pads[rank + axis]) < 0]
            if cropped and pads.max() > 0:
                inner = names.free(f"{node.input[0]}_cropped")
                starts = [max(-int(pads[axis]), 0) for axis in cropped]
                ends = [int(pads[rank + axis]) if pads[rank + axis] < 0 else int(_END) for axis in cropped]
                limits = [integers_tensor(graph, names, f"{inner}_at", each) for each in (starts, ends, cropped)]
                nodes.append(helper.make_node("Slice", [node.input[0], *limits], [inner], names.free(inner)))
                node.input[0] = inner
                node.input[1] = integers_tensor(graph, names, f"{inner}_pads", np.maximum(pads, 0).tolist())
        nodes.append(node)
    replace_nodes(graph, nodes)
