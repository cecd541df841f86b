"""GroupNormalization, rewritten in operators that every checker accepts and every runtime computes alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from pipeline.onnx_models.graphs import Names, add_constant, constants_of, graphs_of, integer, integers_tensor, number

_PER_CHANNEL = 21  # the opset since which scale and bias are given for each channel; before, for each group


def spell_out_group_norms(model: onnx.ModelProto, version: int) -> None:
    """Rewrite each GroupNormalization as InstanceNormalization of its groups, scale and bias, in place.

    The one of opset 18 is deprecated, and onnx's checker refuses it; the one of opset 21 is computed wrongly by
    OpenVINO 2026.4 where the batch is fixed. Those whose scale is computed by the graph stay.
    """
    names = Names(model)
    for graph in graphs_of(model.graph):
        known = {**constants_of(model.graph), **constants_of(graph)}
        for node in [node for node in graph.node if node.op_type == "GroupNormalization"]:
            if node.input[1] not in known:
                continue
            channels = int(known[node.input[1]].dims[0])
            made = _spell_out(model.graph, names, node, channels if version >= _PER_CHANNEL else None)
            place = next(index for index, each in enumerate(graph.node) if each.output[:] == node.output[:])
            del graph.node[place]
            for each in reversed(made):
                graph.node.insert(place, each)


def _spell_out(
    graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, channels: int | None
) -> list[onnx.NodeProto]:
    """Return the nodes; `channels` where scale and bias are per channel. Constants are added to `graph`."""
    source, scale, bias = node.input
    groups = integer(node, "num_groups", 1)
    made: list[onnx.NodeProto] = []

    def add(kind: str, *inputs: str, target: str | None = None, **attributes: Any) -> str:
        name = target or names.free(f"{node.output[0]}_{kind.lower()}")
        made.append(helper.make_node(kind, inputs, [name], names.free(f"{node.name}_{kind}"), **attributes))
        return name

    epsilon = number(node, "epsilon", 1e-5)
    grouped = add("Reshape", source, integers_tensor(graph, names, f"{node.output[0]}_groups", [0, groups, -1]))
    shape = add("Shape", source)
    if channels is None:
        normal = add("InstanceNormalization", grouped, scale, bias, epsilon=epsilon)
        add("Reshape", normal, shape, target=node.output[0])
        return made
    ones, zeros = (
        add_constant(graph, names, f"{node.output[0]}_{what}", np.full(groups, value, np.float32))
        for what, value in (("ones", 1), ("zeros", 0))
    )
    normal = add("InstanceNormalization", grouped, ones, zeros, epsilon=epsilon)
    apart = add("Reshape", normal, integers_tensor(graph, names, f"{node.output[0]}_channels", [0, channels, -1]))
    behind = integers_tensor(graph, names, f"{node.output[0]}_axis", [1])
    scaled = add("Mul", apart, add("Unsqueeze", scale, behind))
    moved = add("Add", scaled, add("Unsqueeze", bias, behind))
    add("Reshape", moved, shape, target=node.output[0])
    return made
