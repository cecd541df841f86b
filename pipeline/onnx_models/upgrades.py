"""Operators of opsets 7 to 16 in the form of opset 17, each computing what it did in its own opset.

Operators that are not here need no change: later opsets added types to them, or attributes whose defaults keep the
earlier behaviour. Source: the operators' change log, and ONNX Runtime's kernels where it leaves the behaviour open
(Upsample, Resize).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from pipeline.onnx_models.graphs import (
    Names,
    add_constant,
    attributes_of,
    constants_of,
    integer,
    integers,
    integers_tensor,
    number,
    remove_attributes,
    replace_nodes,
    text,
)

_COMMON = 17  # the opset that the rewrites lead to
Shapes = Mapping[str, Sequence[int | str | None]]


class NoEqualError(Exception):
    """An operator that opset 17 cannot express; the text names it."""


@dataclass
class _Place:
    """The context of a node: what its rewrite may read and extend."""

    graph: onnx.GraphProto
    shapes: Shapes
    names: Names
    read: frozenset[str]  # every tensor that is read, or an output
    constants: Mapping[str, onnx.TensorProto]

    def integers(self, node: onnx.NodeProto, what: str, values: Sequence[int]) -> str:
        return integers_tensor(self.graph, self.names, f"{node.output[0]}_{what}", values)

    def constant(self, node: onnx.NodeProto, what: str, values: npt.ArrayLike) -> str:
        return add_constant(self.graph, self.names, f"{node.output[0]}_{what}", values)


_Rewrite = Callable[[onnx.NodeProto, _Place], list[onnx.NodeProto]]


def upgrade(graph: onnx.GraphProto, version: int, shapes: Shapes, names: Names) -> None:
    """Rewrite the nodes of one graph from opset `version`, 7 to 16, in place; not those of graphs inside its nodes.

    Args:
        shapes: of the tensors, as far as they are known.

    Raises:
        NoEqualError: a node has no equivalent.
    """
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    place = _Place(graph, shapes, names, frozenset(read), constants_of(graph))
    rewritten: list[onnx.NodeProto] = []
    for node in graph.node:
        until, rewrite = _REWRITES.get(node.op_type, (0, _as_it_is))
        rewritten += rewrite(node, place) if version < until else [node]
    replace_nodes(graph, rewritten)


def _as_it_is(node: onnx.NodeProto, place: _Place) -> list[onnx.NodeProto]:
    return [node]


def _axes_to_input(node: onnx.NodeProto, place: _Place) -> list[onnx.NodeProto]:
    """Squeeze, Unsqueeze, ReduceSum before 13."""
    return _attribute_to_input(node, place, "axes")


def _split(node: onnx.NodeProto, place: _Place) -> list[onnx.NodeProto]:
    return _attribute_to_input(node, place, "split")


def _attribute_to_input(node: onnx.NodeProto, place: _Place, name: str) -> list[onnx.NodeProto]:
    values = integers(node, name)
    if values is not None:
        remove_attributes(node, name)
        node.input.append(place.integers(node, name, values))
    return [node]


def _clip(node: onnx.NodeProto, place: _Place) -> list[onnx.NodeProto]:
    """Clip before 11: bounds were attributes. They have the type of the clipped tensor, which was float then."""
    bounds = {attribute.name: attribute.f for attribute in node.attribute if attribute.name in ("min", "max")}
    remove_attributes(node, *bounds)
    for name in ("min", "max"):
        node.input.append(place.constant(node, name, np.float32(bounds[name])) if name in bounds else "")
    while not node.input[-1]:
        node.input.pop()
    return [node]


def _pad(node: onnx.NodeProto, place: _Place) -> list[onnx.NodeProto]:
    """Pad before 11: pads and value were attributes."""
    pads, value = integers(node, "pads") or [], number(node, "value", 0.0)
    remove_attributes(node, "pads", "value")
    node.input.append(place.integers(node, "pads", pads))
    if value:
        node.input.append(place.constant(node, "value", np.float32(value)))
    return [node]


def _slice(node: onnx.NodeProto, place: _Place) -> list[onnx.NodeProto]:
    """Slice before 10: starts, ends and axes were attributes."""
    starts = integers(node, "starts") or []
    axes = integers(node, "axes") or list(range(len(starts)))
    values = {"starts": starts, "ends": integers(node, "ends") or [], "axes": axes}
    remove_attributes(node, *values)
    node.input.extend(place.integers(node, name, each) for name, each in values.items())
    return [node]


def _top_k(node: onnx.NodeProto, place: _Place) -> list[onnx.NodeProto]:
    """TopK before 10: k was an attribute."""
    k = integer(node, "k", 1)
    remove_attributes(node, "k")
    node.input.append(place.integers(node, "k", [k]))
    return [node]


def _dropout(node: onnx.NodeProto, place: _Place) -> list[onnx.NodeProto]:
    """Dropout before 12: the ratio was an attribute, without effect outside training."""
    remove_attributes(node, "ratio")
    return [node]


def _scatter(node: onnx.NodeProto, place: _Place) -> list[onnx.NodeProto]:
    node.op_type = "ScatterElements"
    return [node]


def _roi_align(node: onnx.NodeProto, place: _Place) -> list[onnx.NodeProto]:
    """RoiAlign before 16 did not shift its boxes by half a pixel."""
    node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "output_half_pixel"))
    return [node]


def _batch_normalization(node: onnx.NodeProto, place: _Place) -> list[onnx.NodeProto]:
    """BatchNormalization before 14: further outputs meant training; before 9, `spatial` could be 0.

    With that, statistics have the shape [C, H, W] of an image; they are computed here as a product and a sum.
    """
    if any(name in place.read for name in node.output[1:]):
        raise NoEqualError(f"BatchNormalization with its statistics as outputs (node {node.name!r})")
    if any(node.output[1:]):
        node.attribute.append(helper.make_attribute("training_mode", 1))
    del node.output[1:]
    spatial = integer(node, "spatial", 1)
    remove_attributes(node, "spatial")
    if spatial:
        return [node]
    if not all(name in place.constants for name in node.input[1:]):
        raise NoEqualError(f"BatchNormalization with spatial=0 and computed statistics (node {node.name!r})")
    scale, offset, mean, variance = (
        numpy_helper.to_array(place.constants[name]).astype(np.float64) for name in node.input[1:]
    )
    factor = scale / np.sqrt(variance + number(node, "epsilon", 1e-5))
    factor_name = place.constant(node, "factor", factor.astype(np.float32))
    offset_name = place.constant(node, "offset", (offset - mean * factor).astype(np.float32))
    product = place.names.free(f"{node.output[0]}_product")
    return [
        helper.make_node("Mul", [node.input[0], factor_name], [product], f"{node.name}_mul"),
        helper.make_node("Add", [product, offset_name], node.output[:1], f"{node.name}_add"),
    ]


def _softmax(node: onnx.NodeProto, place: _Place) -> list[onnx.NodeProto]:
    """Softmax, LogSoftmax, Hardmax before 13: over all axes from `axis` (1) on, jointly.

    This equals one axis where the others from there on have size 1; else the tensor is flattened for it.
    """
    axis = integer(node, "axis", 1)
    remove_attributes(node, "axis")
    shape = place.shapes.get(node.input[0])
    if shape is not None:
        axis = axis % len(shape)
        wide = [index for index in range(axis, len(shape)) if shape[index] != 1]
        if len(wide) <= 1:
            node.attribute.append(helper.make_attribute("axis", wide[0] if wide else axis))
            return [node]
    flat, result, shape_name = (place.names.free(f"{node.output[0]}_{what}") for what in ("flat", "result", "shape"))
    node.attribute.append(helper.make_attribute("axis", 1))
    source, target = node.input[0], node.output[0]
    node.input[0], node.output[0] = flat, result
    return [
        helper.make_node("Flatten", [source], [flat], place.names.free(f"{node.name}_flatten"), axis=axis),
        node,
        helper.make_node("Shape", [source], [shape_name], place.names.free(f"{node.name}_shape")),
        helper.make_node("Reshape", [result, shape_name], [target], place.names.free(f"{node.name}_reshape")),
    ]


def _resize(node: onnx.NodeProto, place: _Place) -> list[onnx.NodeProto]:
    """Upsample, and Resize of opset 10: both sample at x / scale, rounded down to the nearest.

    ONNX Runtime rounds up where an axis shrinks, which only Resize can ask for; axes of both kinds take two nodes.
    """
    scales = attributes_of(node).get("scales")
    if scales is not None:  # Upsample of opset 7
        remove_attributes(node, "scales")
        node.input.append(place.constant(node, "scales", np.array(scales, np.float32)))
    mode = text(node, "mode", "nearest")
    known = place.constants.get(node.input[1])
    values = None if known is None else numpy_helper.to_array(known)
    if node.op_type == "Upsample" or mode != "nearest" or values is None or (values >= 1).all():
        return [_resize_node(node, node.input[0], node.input[1], node.output[0], mode, "floor", node.name)]
    if (values <= 1).all():
        return [_resize_node(node, node.input[0], node.input[1], node.output[0], mode, "ceil", node.name)]
    between = place.names.free(f"{node.output[0]}_grown")
    grown, shrunk = (
        place.constant(node, what, limit(values, np.float32(1)))
        for what, limit in (("scales_grown", np.maximum), ("scales_shrunk", np.minimum))
    )
    name = place.names.free(f"{node.name}_shrink")
    return [
        _resize_node(node, node.input[0], grown, between, mode, "floor", node.name),
        _resize_node(node, between, shrunk, node.output[0], mode, "ceil", name),
    ]


def _resize_node(
    node: onnx.NodeProto, source: str, scales: str, target: str, mode: str, nearest: str, name: str
) -> onnx.NodeProto:
    rounding = {"nearest_mode": nearest} if mode == "nearest" else {}
    return helper.make_node(
        "Resize",
        [source, "", scales],
        [target],
        name,
        mode="linear" if mode == "bilinear" else mode,
        coordinate_transformation_mode="asymmetric",
        **rounding,
    )


# Operator -> (first opset with today's form, rewrite from earlier ones).
_REWRITES: Mapping[str, tuple[int, _Rewrite]] = {
    "BatchNormalization": (14, _batch_normalization),
    "Clip": (11, _clip),
    "Dropout": (12, _dropout),
    "Hardmax": (13, _softmax),
    "LogSoftmax": (13, _softmax),
    "Pad": (11, _pad),
    "ReduceSum": (13, _axes_to_input),
    "Resize": (11, _resize),
    "RoiAlign": (16, _roi_align),
    "Scatter": (11, _scatter),
    "Slice": (10, _slice),
    "Softmax": (13, _softmax),
    "Split": (13, _split),
    "Squeeze": (13, _axes_to_input),
    "TopK": (10, _top_k),
    "Unsqueeze": (13, _axes_to_input),
    "Upsample": (10, _resize),
}
REWRITTEN = frozenset(_REWRITES)


def is_kept(kind: str, low: int, high: int) -> bool:
    """Tell whether an operator of one opset means the same in a later one; False where that is not known."""
    if low < _COMMON and low < _REWRITES.get(kind, (0, _as_it_is))[0]:
        return False
    try:
        since = {onnx.defs.get_schema(kind, opset).since_version for opset in (max(low, min(_COMMON, high)), high)}
    except onnx.defs.SchemaError:
        return False
    return len(since) == 1
