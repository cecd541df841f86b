"""Graphs inside nodes, put in the place of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from pipeline.onnx_models.graphs import Names, remove_unused, rename, replace_nodes


def unpack(
    graph: onnx.GraphProto, names: Names, body: onnx.GraphProto, prefix: str, given: Mapping[str, str]
) -> tuple[list[onnx.NodeProto], list[str]]:
    """Return copies of a body's nodes for the graph around it, whose initializers they get.

    Args:
        prefix: of the new names.
        given: names of the graph around for the body's inputs.

    Returns:
        The nodes, and the names of what the body gives.
    """
    part = onnx.GraphProto()
    part.CopyFrom(body)
    made = [tensor.name for tensor in part.initializer]
    made += [output for each in part.node for output in each.output if output]
    renamed = {**given, **{name: names.free(f"{prefix}_{name}") for name in made}}
    for tensor in part.initializer:
        tensor.name = renamed[tensor.name]
    for node in part.node:
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for old, new in renamed.items():
        rename(part, old, new)
    for node in part.node:
        node.name = names.free(f"{prefix}_{node.name or node.op_type}")
    graph.initializer.extend(part.initializer)
    # A body may return a tensor from outside, or one tensor twice.
    return list(part.node), [renamed.get(value.name, value.name) for value in body.output]


def replace_node(graph: onnx.GraphProto, node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Put nodes in the place of one, and remove what is not needed any more; in place."""
    place = next(index for index, each in enumerate(graph.node) if each.output[:] == node.output[:])
    replace_nodes(graph, [*graph.node[:place], *nodes, *graph.node[place + 1 :]])
    remove_unused(graph)
