"""What the steps that convert an ONNX file share: walking a graph, its constants, new names and nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, helper, numpy_helper

from pipeline.runtimes.sessions import tensor_bytes

Array = npt.NDArray[np.generic]
_LARGE = 1 << 20  # bytes
_Part = TypeVar("_Part", onnx.NodeProto, onnx.TensorProto)


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and the graphs inside its nodes (branches of If, bodies of Loop and Scan), outermost first."""
    yield graph
    for node in graph.node:
        for body in bodies_of(node):
            yield from graphs_of(body)


def bodies_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that are attributes of a node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def makers_of(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return the node that computes each tensor, by the tensor's name. Outputs that are left out have no name."""
    return {name: node for node in graph.node for name in node.output if name}


def readers_of(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that read each tensor, in graph order; a node that reads it twice is listed twice.

    What graphs inside nodes read does not count, nor do inputs that are left out.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in filter(None, node.input):
            readers.setdefault(name, []).append(node)
    return readers


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes that the node has, by name: int, float, bytes, lists of these, or what onnx stores."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def integer(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return an integer attribute."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def number(node: onnx.NodeProto, name: str, default: float) -> float:
    """Return a float attribute."""
    return next((float(attribute.f) for attribute in node.attribute if attribute.name == name), default)


def text(node: onnx.NodeProto, name: str, default: str) -> str:
    """Return a text attribute."""
    return next((attribute.s.decode() for attribute in node.attribute if attribute.name == name), default)


def integers(node: onnx.NodeProto, name: str) -> list[int] | None:
    """Return a list of integers, None where the node lacks the attribute."""
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == name), None)


def remove_attributes(node: onnx.NodeProto, *names: str) -> None:
    """Remove the attributes of these names, where present."""
    kept = [attribute for attribute in node.attribute if attribute.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)


def constants_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the tensors that do not depend on the input, by name: initializers, Constant nodes, Identities of them."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            tensor = _value(node)
            if tensor is not None:
                found[node.output[0]] = tensor
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    attribute: onnx.AttributeProto = node.attribute[0]
    if attribute.name == "value":
        return attribute.t
    if attribute.name in ("value_float", "value_floats"):
        return numpy_helper.from_array(np.array(helper.get_attribute_value(attribute), np.float32))
    if attribute.name in ("value_int", "value_ints"):
        return numpy_helper.from_array(np.array(helper.get_attribute_value(attribute), np.int64))
    return None


class Names:
    """The names that a model uses, to find free ones."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._taken = {""}
        for graph in graphs_of(model.graph):
            self._taken.update(value.name for value in (*graph.input, *graph.output, *graph.initializer))
            for node in graph.node:
                self._taken.update((node.name, *node.input, *node.output))

    def free(self, wanted: str) -> str:
        """Return `wanted`, or an unused name like it, and reserve it."""
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name


def add_constant(graph: onnx.GraphProto, names: Names, wanted: str, values: npt.ArrayLike) -> str:
    """Add an initializer under a free name and return it."""
    name = names.free(wanted)
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name


def integers_tensor(graph: onnx.GraphProto, names: Names, wanted: str, values: Sequence[int]) -> str:
    """Add an int64 [len(values)] initializer under a free name and return it."""
    return add_constant(graph, names, wanted, np.array(values, np.int64))


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Let every reader of `old` read `new`, also in graphs inside nodes and at the outputs of those."""
    for each in graphs_of(graph):
        for node in each.node:
            node.input[:] = [new if name == old else name for name in node.input]
        if each is not graph:
            for value in each.output:
                value.name = new if value.name == old else value.name


def _copy(part: _Part) -> _Part:
    """Return a copy that outlives the list of the graph that the part stands in."""
    made = type(part)()
    made.CopyFrom(part)
    return made


def replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Set the nodes of a graph; nodes of the graph itself may be among them."""
    kept = [_copy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put nodes behind those whose results they read, in place; those of a circle stay at the end, in their order.

    Runtimes sort them, onnx's checker does not.
    """
    reads = [{*node.input, *(name for body in bodies_of(node) for name in _read_within(body))} for node in graph.node]
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    wanted = [{makers[name] for name in names if name in makers} for names in reads]
    if all(index > max(before, default=-1) for index, before in enumerate(wanted)):
        return
    order: dict[int, None] = {}
    while ready := [index for index, before in enumerate(wanted) if index not in order and before <= order.keys()]:
        order.update(dict.fromkeys(ready))
    replace_nodes(graph, [graph.node[index] for index in (*order, *(set(range(len(wanted))) - order.keys()))])


def _read_within(body: onnx.GraphProto) -> Iterator[str]:
    for graph in graphs_of(body):
        for node in graph.node:
            yield from node.input
        yield from (value.name for value in graph.output)


def remove_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and initializers that no output depends on; readers inside nested graphs count."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            needed.update(
                name
                for body in bodies_of(node)
                for each in graphs_of(body)
                for name in (*(name for inner in each.node for name in inner.input), *(v.name for v in each.output))
            )
    if len(kept) < len(graph.node):
        replace_nodes(graph, kept[::-1])
    used = [tensor for tensor in graph.initializer if tensor.name in needed]
    if len(used) < len(graph.initializer):
        copies = [_copy(tensor) for tensor in used]
        del graph.initializer[:]
        graph.initializer.extend(copies)


def check_model(model: onnx.ModelProto) -> None:
    """Raise what onnx's checker finds, without what it takes for large weights: it serializes the whole model.

    Raises:
        ValidationError: a node, a type or a tensor is invalid.
        ValueError: a large tensor holds another number of values than its shape says.
    """
    large = [tensor for tensor in model.graph.initializer if is_large(tensor)]
    onnx.checker.check_model(without_weights(model, names={tensor.name for tensor in large}))
    for tensor in large:
        numpy_helper.to_array(tensor)


def is_large(tensor: onnx.TensorProto) -> bool:
    """Tell whether a tensor is worth some trouble for the sake of memory; one of an invalid type is not."""
    try:
        return tensor_bytes(tensor) >= _LARGE
    except KeyError:
        return False


def without_weights(
    model: onnx.ModelProto, largest: int = 1024, *, names: Collection[str] | None = None
) -> onnx.ModelProto:
    """Return a copy whose initializers of more than `largest` bytes are inputs, since shape inference copies them.

    Args:
        names: of the initializers that are to be inputs in the place of those.
    """
    light = onnx.ModelProto()
    light.ir_version = max(model.ir_version, 4)
    light.opset_import.extend(model.opset_import)
    graph = light.graph
    graph.name = model.graph.name or "graph"
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        if tensor_bytes(tensor) <= largest if names is None else tensor.name not in names:
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int | str | None]]:
    """Return the inferred shapes: for each tensor of known rank a list of sizes, names of free axes, or None."""
    return {
        value.name: [_dim(dim) for dim in value.type.tensor_type.shape.dim]
        for value in _inferred(model)
        if value.type.tensor_type.HasField("shape")
    }


def kinds_of(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of each tensor, as far as shape inference knows it."""
    return {value.name: int(value.type.tensor_type.elem_type) for value in _inferred(model)}


def _inferred(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    try:
        light = onnx.shape_inference.infer_shapes(without_weights(model), data_prop=True)
    except (RuntimeError, ValueError):  # where inference fails, no type is known
        return []
    return [*light.graph.input, *light.graph.value_info, *light.graph.output]


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) or None
