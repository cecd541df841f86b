"""Operators of a loaded model in the form that quantization knows, each meaning what it meant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import DataError
from pipeline.models.onnx_graphs import (
    Names,
    add_constant,
    constants_of,
    graphs_of,
    integer,
    integers,
    kinds_of,
    number,
    remove_attributes,
    remove_unused,
    rename,
    shapes_of,
    text,
)

_OTHER_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_LARGEST = float(np.finfo(np.float32).max)
# A fill at or below this stands for "no value": converters write -inf, the least float32 or float16, -1e9, ...
_NO_VALUE = -1e4


def to_float32(model: onnx.ModelProto) -> bool:
    """Make every tensor of another float type, and every Cast to one, float32, in place; tell whether there was one."""
    changed = False
    for graph in graphs_of(model.graph):
        for tensor in graph.initializer:
            changed |= _tensor_to_float32(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in _OTHER_FLOATS:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
                changed = True
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    changed |= _tensor_to_float32(attribute.t)
                elif attribute.name in ("to", "dtype", "softmax_precision") and attribute.i in _OTHER_FLOATS:
                    attribute.i = TensorProto.FLOAT
                    changed = True
    return changed


def _tensor_to_float32(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type not in _OTHER_FLOATS:
        return False
    values = numpy_helper.to_array(tensor).astype(np.float64)
    finite = np.where(np.isinf(values), values, np.clip(values, -_LARGEST, _LARGEST))
    tensor.CopyFrom(numpy_helper.from_array(finite.astype(np.float32), tensor.name))
    return True


def drop_last_casts(model: onnx.ModelProto) -> None:
    """Remove what ends the model in the same values again: Identity, and Cast to the type that they have; in place."""
    graph, kinds = model.graph, kinds_of(model)
    output = graph.output[0].name
    while True:
        made = {name: node for node in graph.node for name in node.output}
        last = made.get(output)
        source = made.get(last.input[0]) if last is not None and last.op_type in ("Cast", "Identity") else None
        if last is None or source is None:
            return
        name, before = last.input[0], kinds.get(last.input[0])
        read = sum(name in node.input for node in graph.node)
        if read > 1 or (last.op_type == "Cast" and integer(last, "to", 0) != before):
            return
        graph.node.remove(last)
        source.output[:] = [output if each == name else each for each in source.output]


def check_inference(model: onnx.ModelProto, path: Path) -> None:
    """Set Dropout to inference, in place.

    Raises:
        DataError: a batch norm computes its statistics from the batch.
    """
    for graph in graphs_of(model.graph):
        for node in graph.node:
            if node.op_type == "BatchNormalization" and integer(node, "training_mode", 0):
                raise DataError(
                    f"{path}: node {node.name!r} (BatchNormalization) is in training mode; export it after model.eval()"
                )
            if node.op_type == "Dropout":
                del node.input[1:]


def simplify_gemms(model: onnx.ModelProto) -> None:
    """Fold alpha and beta of Gemms into constant weights and biases, and make biases [N], in place.

    What cannot be folded (a computed weight with alpha, a bias of rows) stays as it is.
    """
    graph, names, constants = model.graph, Names(model), constants_of(model.graph)
    for node in graph.node:
        if node.op_type != "Gemm":
            continue
        _fold_factor(graph, names, node, constants, "alpha", 1)
        if len(node.input) < 3:
            remove_attributes(node, "beta")
            continue
        if number(node, "beta", 1.0) == 0:
            del node.input[2:]
            remove_attributes(node, "beta")
            continue
        _fold_factor(graph, names, node, constants, "beta", 2)
        _flatten_bias(graph, names, node, constants)
    remove_unused(graph)


def _fold_factor(
    graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, constants: Mapping[str, TensorProto], name: str, at: int
) -> None:
    factor = number(node, name, 1.0)
    if factor != 1 and node.input[at] in constants:
        values = numpy_helper.to_array(constants[node.input[at]])
        scaled = (values * np.float64(factor)).astype(np.float32)
        node.input[at] = add_constant(graph, names, f"{node.input[at]}_{name}", scaled)
    elif factor != 1:
        return
    remove_attributes(node, name)


def _flatten_bias(
    graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, constants: Mapping[str, TensorProto]
) -> None:
    known = {tensor.name: tensor for tensor in graph.initializer} | dict(constants)
    weight, bias = known.get(node.input[1]), known.get(node.input[2])
    if weight is None or bias is None:
        return
    columns = weight.dims[0] if integer(node, "transB", 0) else weight.dims[1]
    if list(bias.dims) == [columns] or (len(bias.dims) == 2 and bias.dims[0] != 1):
        return
    values = numpy_helper.to_array(bias)
    row = np.broadcast_to(values.reshape(-1) if values.ndim else values, (columns,))
    node.input[2] = add_constant(graph, names, f"{node.input[2]}_row", row)


def fold_pads(model: onnx.ModelProto) -> None:
    """Let MaxPools do the padding of a Pad before them, where its fill can never be the largest of a window; in place.

    Such a fill is no value of the network: to measure a range by it would leave one step for all others.
    """
    graph, constants = model.graph, constants_of(model.graph)
    pads = {node.output[0]: node for node in graph.node if node.op_type == "Pad"}
    positive = {node.output[0] for node in graph.node if node.op_type == "Relu"}
    shapes = shapes_of(model) if pads else {}
    for node in graph.node:
        if node.op_type != "MaxPool" or node.input[0] not in pads:
            continue
        pad = pads[node.input[0]]
        fill = _fill(pad, constants)
        if fill is None or not (fill <= _NO_VALUE or (pad.input[0] in positive and fill <= 0)):
            continue
        added = _spatial_pads(pad, constants, len(shapes.get(pad.input[0], [])))
        own = _own_pads(node, shapes)
        if added is None or own is None:
            continue
        kernel, dilations = integers(node, "kernel_shape") or [], integers(node, "dilations")
        reach = [size * step for size, step in zip(kernel, dilations or [1] * len(kernel), strict=True)] * 2
        together = [mine + more for mine, more in zip(own, added, strict=True)]
        if len(reach) != len(together) or any(size >= limit for size, limit in zip(together, reach, strict=True)):
            continue  # a window of nothing but padding
        remove_attributes(node, "pads", "auto_pad")
        node.attribute.append(helper.make_attribute("pads", together))
        node.input[0] = pad.input[0]
    remove_unused(graph)


def _fill(pad: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> float | None:
    """Return what a Pad fills with, None where that is not one constant."""
    if text(pad, "mode", "constant") != "constant":
        return None
    if len(pad.input) < 3 or not pad.input[2]:
        return 0.0
    value = constants.get(pad.input[2])
    return None if value is None else float(numpy_helper.to_array(value).reshape(-1)[0])


def _spatial_pads(pad: onnx.NodeProto, constants: Mapping[str, TensorProto], rank: int) -> list[int] | None:
    """Return begins and ends of a Pad's spatial axes, as a pool has them; None where it does anything else."""
    if pad.input[1] not in constants or rank < 3:
        return None
    values = numpy_helper.to_array(constants[pad.input[1]]).tolist()
    axes = list(range(rank))
    if len(pad.input) > 3 and pad.input[3]:
        if pad.input[3] not in constants:
            return None
        axes = [axis % rank for axis in numpy_helper.to_array(constants[pad.input[3]]).tolist()]
    begins, ends = [0] * rank, [0] * rank
    for axis, begin, end in zip(axes, values[: len(axes)], values[len(axes) :], strict=True):
        begins[axis], ends[axis] = begin, end
    if any(begins[:2] + ends[:2]) or min(begins + ends) < 0:
        return None
    return begins[2:] + ends[2:]


def _own_pads(pool: onnx.NodeProto, shapes: Mapping[str, list[int | str | None]]) -> list[int] | None:
    """Return the pads of a pool as numbers, None where they cannot be told or another rule than theirs holds."""
    kernel = integers(pool, "kernel_shape") or []
    strides = integers(pool, "strides") or [1] * len(kernel)
    automatic = text(pool, "auto_pad", "NOTSET")
    if integer(pool, "ceil_mode", 0) or len(pool.output) > 1:
        return None
    if automatic in ("NOTSET", ""):
        return integers(pool, "pads") or [0] * 2 * len(kernel)
    if automatic == "VALID":
        return [0] * 2 * len(kernel)
    sizes = shapes.get(pool.input[0], [])[2:]
    if any(step != 1 for step in integers(pool, "dilations") or []) or len(sizes) != len(kernel):
        return None
    halves: list[tuple[int, int]] = []
    for size, length, stride in zip(sizes, kernel, strides, strict=True):
        if not isinstance(size, int):
            return None
        total = max((-(-size // stride) - 1) * stride + length - size, 0)
        less, more = total // 2, total - total // 2
        halves.append((less, more) if automatic == "SAME_UPPER" else (more, less))
    return [begin for begin, _ in halves] + [end for _, end in halves]


def flatten_output(model: onnx.ModelProto, dims: tuple[int, ...]) -> None:
    """Make an output of [N, classes, 1, 1], or [N, 1, classes], [N, classes], in place; others stay.

    Args:
        dims: of the output for a batch.
    """
    if len(dims) < 3 or sum(size > 1 for size in dims[1:]) != 1:
        return
    graph, names = model.graph, Names(model)
    name = graph.output[0].name
    deep = names.free(f"{name}_deep")
    for node in graph.node:
        node.output[:] = [deep if each == name else each for each in node.output]
    rename(graph, name, deep)
    graph.node.append(helper.make_node("Flatten", [deep], [name], names.free("flatten_output"), axis=1))


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own, in place: quantization tells nodes apart by name, and names are optional."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            taken.add(name)
            node.name = name
        seen.add(node.name)


def cut_class(model: onnx.ModelProto, index: int, classes: int) -> None:
    """Remove one class, the first (0) or the last (-1), in place; before a softmax, which then is over those that stay.

    Args:
        classes: the model has.
    """
    graph, names = model.graph, Names(model)
    name = _logits(model, classes)
    source = names.free(f"{name}_all_classes")
    for node in graph.node:
        node.output[:] = [source if each == name else each for each in node.output]
    start, stop = (1, classes) if index == 0 else (0, classes - 1)
    bounds = [
        add_constant(graph, names, f"{name}_{what}", np.array([value], np.int64))
        for what, value in (("first", start), ("end", stop), ("axis", 1))
    ]
    place = next(number for number, node in enumerate(graph.node) if source in node.output) + 1
    graph.node.insert(place, helper.make_node("Slice", [source, *bounds], [name], names.free("cut_class")))


def _logits(model: onnx.ModelProto, classes: int) -> str:
    """Return what the last softmax reads, or the output where none ends the model."""
    made = {output: node for node in model.graph.node for output in node.output}
    shapes, found = shapes_of(model), str(model.graph.output[0].name)
    name = found
    while name in made and made[name].op_type in ("Softmax", "LogSoftmax", "Flatten", "Squeeze", "Identity"):
        is_softmax = made[name].op_type.endswith("Softmax")
        name = str(made[name].input[0])
        shape = shapes.get(name, [])
        if is_softmax and len(shape) > 1 and shape[1] == classes:
            found = name
    return found
