"""Operators of opsets 1 to 6 in the form of opset 7, each computing what it did in its own opset.

onnx's version converter needs a shape for every tensor that is broadcast, and infers none behind the operators of
opsets 1 to 5 that list `consumed_inputs`. Source: the operators' change log.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.onnx_models.graphs import (
    Names,
    add_constant,
    attributes_of,
    constants_of,
    graphs_of,
    integer,
    integers,
    integers_tensor,
    number,
    remove_attributes,
    shapes_of,
)

_OPSET = 7
_FORMED = 6  # the opset of the first step, for which shapes are inferred
# Operators whose later form lacks only attributes, or names them otherwise, are not listed.
_WITHOUT_EQUAL = ("Tile", "RNN", "GRU", "LSTM", "GlobalLpPool", "LpPool")
_BROADCASTING = ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less")


class NotRaisedError(Exception):
    """An operator without a form in opset 7; the text names it and says why."""


def raise_to_7(model: onnx.ModelProto, version: int) -> None:
    """Bring a model of opset `version`, 1 to 6, to opset 7, in place.

    Args:
        model: whose input shape is declared, since broadcasting depends on ranks.

    Raises:
        NotRaisedError: a node trains, or has no equivalent.
    """
    names = Names(model)
    for graph in graphs_of(model.graph):
        for node in graph.node:
            _check(node, version)
            _form(graph, names, node, version)
    _declare(model, _FORMED)
    ranks = {name: len(shape) for name, shape in shapes_of(model).items()}
    for graph in graphs_of(model.graph):
        for node in list(graph.node):
            _align(graph, names, node, ranks)
    _declare(model, _OPSET)


def _declare(model: onnx.ModelProto, version: int) -> None:
    next(opset for opset in model.opset_import if opset.domain == "").version = version


def _check(node: onnx.NodeProto, version: int) -> None:
    if node.op_type in ("BatchNormalization", "Dropout") and not integer(node, "is_test", 0):
        raise NotRaisedError(f"node {node.name!r} ({node.op_type}) is in training mode; export it after model.eval()")
    has_equal = node.op_type not in _WITHOUT_EQUAL or (node.op_type.endswith("LpPool") and version > 1)
    if not has_equal or not integer(node, "spatial", 1):
        raise NotRaisedError(f"{node.op_type} of opset {version} (node {node.name!r}) has no equal in opset 17")


def _form(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, version: int) -> None:
    """Give a node the attributes and inputs that it has in opset 6, without the modes that are checked."""
    remove_attributes(node, "consumed_inputs", "is_test")
    given = attributes_of(node)
    if node.op_type == "Reshape" and "shape" in given:
        remove_attributes(node, "shape")
        node.input.append(integers_tensor(graph, names, f"{node.output[0]}_shape", list(given["shape"])))
    elif node.op_type == "Cast" and isinstance(given.get("to"), bytes):
        remove_attributes(node, "to")
        node.attribute.append(helper.make_attribute("to", TensorProto.DataType.Value(given["to"].decode().upper())))
    elif node.op_type == "Concat" and "axis" not in given:
        node.attribute.append(helper.make_attribute("axis", 1))
    elif node.op_type == "Pad" and "paddings" in given:
        remove_attributes(node, "paddings")
        node.attribute.append(helper.make_attribute("pads", list(given["paddings"])))
    elif node.op_type == "Upsample" and "height_scale" in given:
        scales = [1.0, 1.0, number(node, "height_scale", 1.0), number(node, "width_scale", 1.0)]
        remove_attributes(node, "height_scale", "width_scale")
        node.attribute.append(helper.make_attribute("scales", scales))
    elif node.op_type == "Split" and version == 1 and len(node.input) > 1:
        sizes = constants_of(graph).get(node.input[1])
        if sizes is None or integers(node, "split") is not None:
            raise NotRaisedError(f"Split of opset 1 (node {node.name!r}) has no equal in opset 17")
        node.attribute.append(helper.make_attribute("split", numpy_helper.to_array(sizes).tolist()))
        del node.input[1:]


def _align(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, ranks: dict[str, int]) -> None:
    """Let the second operand be broadcast as numpy does: axes of size 1 stand for those after its own."""
    axis = integer(node, "axis", -1)
    if node.op_type == "PRelu":  # one slope a channel
        axis = 1
    elif node.op_type not in (*_BROADCASTING, "Gemm"):
        return
    else:
        remove_attributes(node, "broadcast", *([] if node.op_type == "Gemm" else ["axis"]))
    constant = constants_of(graph).get(node.input[1])
    second = ranks.get(node.input[1], 0) if constant is None else len(constant.dims)
    missing = ranks.get(node.input[0], 0) - axis - second
    if axis < 0 or not second or missing <= 0 or (node.op_type == "PRelu" and second > 1):
        return
    if constant is not None:
        values = numpy_helper.to_array(constant)
        if values.size > 1:
            aligned = values.reshape([*values.shape, *[1] * missing])
            node.input[1] = add_constant(graph, names, f"{node.input[1]}_aligned", aligned)
        return
    aligned_name = names.free(f"{node.input[1]}_aligned")
    axes = list(range(second, second + missing))
    place = next(index for index, each in enumerate(graph.node) if each.output[:] == node.output[:])
    graph.node.insert(place, helper.make_node("Unsqueeze", [node.input[1]], [aligned_name], aligned_name, axes=axes))
    graph.node[place + 1].input[1] = aligned_name
