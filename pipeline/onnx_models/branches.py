"""If nodes whose condition is the same for every image, replaced by the branch they take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pipeline.errors import DataError
from pipeline.onnx_models.graphs import (
    Names,
    bodies_of,
    constants_of,
    graphs_of,
    makers_of,
    remove_unused,
    rename,
    replace_nodes,
)
from pipeline.runtimes.sessions import RUNTIME_ERRORS, open_session

_CONTROL = ("If", "Loop", "Scan", "SequenceMap")
# Operators whose result depends only on the shape of a tensor.
_SHAPE_READERS = ("Shape", "Size")
_BATCHES = (1, 2, 3)


def inline_branches(model: onnx.ModelProto, path: Path) -> None:
    """Replace every If by the branch that it takes, in place.

    A condition counts as the same for every image where it is computed from constants and shapes alone, and has the
    same value for several batch sizes.

    Raises:
        DataError: a condition depends on the image, or a node is a loop; it is named.
    """
    while True:
        nodes = [node for node in model.graph.node if node.op_type in _CONTROL]
        if not nodes:
            return
        node = nodes[0]
        taken = _condition(model, node) if node.op_type == "If" else None
        if taken is None:
            why = "its condition depends on the image or the batch" if node.op_type == "If" else "it repeats a graph"
            raise DataError(
                f"{path}: node {node.name!r} is {_article(node.op_type)}, and {why}; only networks without such nodes "
                "are taken: export by tracing (torch.onnx.export of the module, not of a scripted one), or without it"
            )
        _inline(model, node, taken)


def _article(op_type: str) -> str:
    return f"an {op_type}" if op_type == "If" else f"a {op_type}"


def _condition(model: onnx.ModelProto, node: onnx.NodeProto) -> bool | None:
    """Return the condition of an If, None where it may depend on the image."""
    name = node.input[0]
    constants = constants_of(model.graph)
    if name in constants:
        return bool(numpy_helper.to_array(constants[name]).reshape(-1)[0])
    if _depends_on_values(model.graph, name):
        return None
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, None))
    remove_unused(part.graph)
    found = {value for value in (_run(part, batch) for batch in _BATCHES) if value is not None}
    return found.pop() if len(found) == 1 else None


def _depends_on_values(graph: onnx.GraphProto, name: str) -> bool:
    """Tell whether a tensor is computed from more of the input than its shape."""
    made = makers_of(graph)
    inputs = {value.name for value in graph.input}
    waiting, seen = [name], set[str]()
    while waiting:
        each = waiting.pop()
        if each in inputs:
            return True
        node = made.get(each)
        if node is None or each in seen or node.op_type in _SHAPE_READERS:
            continue
        seen.add(each)
        waiting += node.input
        waiting += [read for body in bodies_of(node) for part in graphs_of(body) for n in part.node for read in n.input]
    return False


def _run(model: onnx.ModelProto, batch: int) -> bool | None:
    """Return the one output for a batch of black images, None where the model does not take that batch."""
    feed = {}
    if model.graph.input:
        value = model.graph.input[0]
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        feed[value.name] = np.zeros((batch, *dims[1:]), np.float32)
    try:
        session = open_session(model)
        feed = {name: values for name, values in feed.items() if name in {each.name for each in session.get_inputs()}}
        return bool(np.asarray(session.run(None, feed)[0]).reshape(-1)[0])
    except RUNTIME_ERRORS:
        return None


def _inline(model: onnx.ModelProto, node: onnx.NodeProto, taken: bool) -> None:
    graph, names = model.graph, Names(model)
    wanted = "then_branch" if taken else "else_branch"
    branch = onnx.GraphProto()
    branch.CopyFrom(next(attribute.g for attribute in node.attribute if attribute.name == wanted))
    made = [tensor.name for tensor in branch.initializer]
    made += [output for each in branch.node for output in each.output if output]
    renamed = {name: names.free(f"{node.name}_{name}") for name in made}
    _rename_all(branch, renamed)
    inner = list(branch.node)
    for target, value in zip(node.output, branch.output, strict=True):
        # The branch may return a tensor from outside, or one tensor twice.
        source = renamed.get(value.name, value.name)
        inner.append(helper.make_node("Identity", [source], [target], names.free(f"{node.name}_output")))
    for each in inner:
        each.name = names.free(f"{node.name}_{each.name or each.op_type}")
    graph.initializer.extend(branch.initializer)
    place = next(index for index, each in enumerate(graph.node) if each.output[:] == node.output[:])
    replace_nodes(graph, [*graph.node[:place], *inner, *graph.node[place + 1 :]])
    remove_unused(graph)


def _rename_all(branch: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    for tensor in branch.initializer:
        tensor.name = renamed[tensor.name]
    for node in branch.node:
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for old, new in renamed.items():
        rename(branch, old, new)
