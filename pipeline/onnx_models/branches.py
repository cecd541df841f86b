"""If nodes whose condition is the same for every image, replaced by the branch they take, and Loops by their rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pipeline.errors import DataError
from pipeline.onnx_models import loops
from pipeline.onnx_models.bodies import replace_node, unpack
from pipeline.onnx_models.graphs import Names, bodies_of, constants_of, graphs_of, makers_of, remove_unused
from pipeline.runtimes.sessions import RUNTIME_ERRORS, open_session

_CONTROL = ("If", "Loop", "Scan", "SequenceMap")
# Operators whose result depends only on the shape of a tensor.
_SHAPE_READERS = ("Shape", "Size")
_BATCHES = (1, 2, 3)


def inline_branches(model: onnx.ModelProto, path: Path) -> bool:
    """Replace every If by the branch that it takes, and every Loop and Scan by its rounds, in place.

    A condition, and a number of rounds, counts as the same for every image where it is computed from constants and
    shapes alone. Where it differs between batch sizes, the one for a single image is taken.

    Returns:
        Whether the file may compute something else for several images than for one.

    Raises:
        DataError: a condition depends on the image, or another node repeats a graph; it is named.
    """
    by_batch = False

    def settled(name: str) -> int | None:
        nonlocal by_batch
        value, same = _settled(model, name)
        by_batch |= not same
        return value

    while True:
        nodes = [node for node in model.graph.node if node.op_type in _CONTROL]
        if not nodes:
            return by_batch
        node = nodes[0]
        if loops.write_out(model, node, settled):
            continue
        taken = settled(node.input[0]) if node.op_type == "If" else None
        if taken is None:
            raise DataError(
                f"{path}: node {node.name!r} is {_described(node.op_type)}; only networks without such nodes are "
                "taken: export by tracing (torch.onnx.export of the module, not of a scripted one), or without it"
            )
        _inline(model, node, bool(taken))


def _described(op_type: str) -> str:
    if op_type == "If":
        return "an If, and its condition depends on the image"
    if op_type in ("Loop", "Scan"):
        return f"a {op_type}, and how often it repeats a graph depends on the image, or is above 100"
    return f"a {op_type}, and it repeats a graph"


def _settled(model: onnx.ModelProto, name: str) -> tuple[int | None, bool]:
    """Return a condition or count, None where it may depend on the image, and whether it is the same in every batch."""
    constants = constants_of(model.graph)
    if name in constants:
        return int(numpy_helper.to_array(constants[name]).reshape(-1)[0]), True
    if _depends_on_values(model.graph, name):
        return None, True
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.append(onnx.ValueInfoProto(name=name))
    remove_unused(part.graph)
    found = [value for value in (_run(part, batch) for batch in _BATCHES) if value is not None]  # one image's first
    return (found[0] if found else None), len(set(found)) < 2


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


def _run(model: onnx.ModelProto, batch: int) -> int | None:
    """Return the one output for a batch of black images, None where the model does not take that batch."""
    feed = {}
    if model.graph.input:
        value = model.graph.input[0]
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        feed[value.name] = np.zeros((batch, *dims[1:]), np.float32)
    try:
        session = open_session(model)
        feed = {name: values for name, values in feed.items() if name in {each.name for each in session.get_inputs()}}
        return int(np.asarray(session.run(None, feed)[0]).reshape(-1)[0])
    except RUNTIME_ERRORS:
        return None


def _inline(model: onnx.ModelProto, node: onnx.NodeProto, taken: bool) -> None:
    graph, names = model.graph, Names(model)
    wanted = "then_branch" if taken else "else_branch"
    branch = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
    inner, sources = unpack(graph, names, branch, node.name, {})
    for target, source in zip(node.output, sources, strict=True):
        inner.append(helper.make_node("Identity", [source], [target], names.free(f"{node.name}_output")))
    replace_node(graph, node, inner)
