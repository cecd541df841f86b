"""Operators of a loaded model in the form that quantization supports, computing the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import DataError
from pipeline.onnx_models.graphs import (
    Names,
    add_constant,
    constants_of,
    graphs_of,
    integer,
    integers_tensor,
    kinds_of,
    makers_of,
    number,
    remove_attributes,
    remove_unused,
    rename,
    shapes_of,
)

_OTHER_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_LARGEST = float(np.finfo(np.float32).max)
_FUSED = "_new_shape"  # at the end of the names that ONNX Runtime gives to the shapes of fused reshapes


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
    """Remove operators at the output that change nothing: Identity, and Cast to the same type; in place."""
    graph, kinds = model.graph, kinds_of(model)
    output = graph.output[0].name
    while True:
        made = makers_of(graph)
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
    """Take what training needs from each Dropout, in place.

    Raises:
        DataError: a batch norm computes its statistics from the batch, a Dropout drops values, or a node draws random
            numbers.
    """
    for graph in graphs_of(model.graph):
        constants = {**constants_of(model.graph), **constants_of(graph)}
        for node in graph.node:
            if _is_training(node, constants):
                raise DataError(
                    f"{path}: node {node.name!r} ({node.op_type}) is in training mode; export it after model.eval()"
                )
            if node.op_type in _RANDOM:
                raise DataError(
                    f"{path}: node {node.name!r} ({node.op_type}) draws random numbers; export it after model.eval(), "
                    "or without it"
                )
            if node.op_type == "Dropout":
                del node.input[1:]


def _is_training(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Tell whether a batch norm or a Dropout computes as in training. A mode that is an input is not set to it."""
    if node.op_type == "BatchNormalization":
        return bool(integer(node, "training_mode", 0))
    if node.op_type != "Dropout" or len(node.input) < 3 or node.input[2] not in constants:
        return False
    ratio = numpy_helper.to_array(constants[node.input[1]]) if node.input[1] in constants else np.array(0.5)
    return bool(numpy_helper.to_array(constants[node.input[2]]).any() and ratio.any())


def simplify_gemms(model: onnx.ModelProto) -> None:
    """Fold alpha and beta of Gemms into constant weights and biases, and make biases [N], in place.

    What cannot be folded (a computed weight with alpha, a bias that differs between rows) stays; a computed bias is
    added by an operator of its own. Gemms without a bias get one of zeros, and a MatMul of a matrix and constants
    becomes such a Gemm: between quantizers, and for a fixed batch of more than 2, OpenVINO 2026.4 computes noise where
    there is no bias.
    """
    graph, names, constants = model.graph, Names(model), constants_of(model.graph)
    ranks = {name: len(shape) for name, shape in shapes_of(model).items()}
    for node in list(graph.node):
        if node.op_type == "MatMul" and ranks.get(node.input[0]) == 2 and _has_matrix(node, constants):
            node.op_type = "Gemm"
        if node.op_type != "Gemm":
            continue
        if number(node, "beta", 1.0) == 0:
            del node.input[2:]
        if len(node.input) > 2 and node.input[2] not in constants and _has_matrix(node, constants):
            _add_computed_bias(graph, names, node)
        if len(node.input) < 3:
            remove_attributes(node, "beta")
            _add_bias(graph, names, node, constants)
        else:
            _fold_factor(graph, names, node, constants, "beta", 2)
            _flatten_bias(graph, names, node, constants)
        _fold_factor(graph, names, node, constants, "alpha", 1)
    remove_unused(graph)


def _has_matrix(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    return node.input[1] in constants and len(constants[node.input[1]].dims) == 2


def _add_bias(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> None:
    if not _has_matrix(node, constants):
        return
    columns = constants[node.input[1]].dims[0 if integer(node, "transB", 0) else 1]
    node.input.append(add_constant(graph, names, f"{node.output[0]}_bias", np.zeros(columns, np.float32)))


def _add_computed_bias(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto) -> None:
    """Let an Add behind a Gemm add what its bias computes, as of a residual; in place."""
    target, addend, beta = node.output[0], node.input[2], number(node, "beta", 1.0)
    node.output[0] = names.free(f"{target}_product")
    del node.input[2:]
    place = next(index for index, each in enumerate(graph.node) if each.output[:] == node.output[:])
    sum_node = helper.make_node("Add", [node.output[0], addend], [target], names.free(f"{node.name}_bias"))
    if beta != 1:
        scaled = names.free(f"{target}_addend")
        factor = add_constant(graph, names, f"{target}_beta", np.float32(beta))
        graph.node.insert(place, helper.make_node("Mul", [addend, factor], [scaled], names.free(f"{node.name}_beta")))
        place, sum_node.input[1] = place + 1, scaled
    graph.node.insert(place + 1, sum_node)


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


def flatten_output(model: onnx.ModelProto, dims: tuple[int, ...]) -> None:
    """Reshape an output of [N, classes, 1, 1], [N, 1, classes] or [classes] to [N, classes], in place; others stay.

    Args:
        dims: of the output for a batch; [classes] for one image.
    """
    if len(dims) != 1 and (len(dims) < 3 or sum(size > 1 for size in dims[1:]) != 1):
        return
    name, deep = _before_output(model, "deep")
    graph, names = model.graph, Names(model)
    flatten = helper.make_node("Flatten", [deep], [name], names.free("flatten_output"), axis=1)
    if len(dims) == 1:
        rows = integers_tensor(graph, names, f"{name}_rows", [-1, dims[0]])
        flatten = helper.make_node("Reshape", [deep, rows], [name], names.free("rows_of_output"))
    graph.node.append(flatten)


def put_images_first(model: onnx.ModelProto, axis: int, rank: int) -> None:
    """Transpose an output whose images lie along another axis than the first, as [classes, N], in place."""
    name, before = _before_output(model, "images_later")
    perm = [axis, *(each for each in range(rank) if each != axis)]
    node_name = Names(model).free("images_of_output")
    model.graph.node.append(helper.make_node("Transpose", [before], [name], node_name, perm=perm))


def _before_output(model: onnx.ModelProto, what: str) -> tuple[str, str]:
    """Give what makes the output another name, in place; return the output's and that, for a node between them."""
    graph = model.graph
    name = str(graph.output[0].name)
    before = Names(model).free(f"{name}_{what}")
    for node in graph.node:
        node.output[:] = [before if each == name else each for each in node.output]
    rename(graph, name, before)
    return name, before


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a unique name, in place: quantization identifies nodes by name, and names are optional."""
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


def rename_fused_shapes(model: onnx.ModelProto) -> None:
    """Give the shapes that ONNX Runtime makes for fused reshapes names of ours, in place.

    It names them after a node, and fails ("Attempt to replace the existing tensor") where the file has one of that name
    already, from having been optimized before.
    """
    names = Names(model)
    renamed = {
        tensor.name: names.free(f"{tensor.name.removesuffix(_FUSED)}_fused")
        for tensor in model.graph.initializer
        if tensor.name.endswith(_FUSED)
    }
    for tensor in model.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for old, new in renamed.items():
        rename(model.graph, old, new)


def cut_class(model: onnx.ModelProto, index: int, classes: int) -> None:
    """Remove one class, the first (0) or the last (-1), in place; before a softmax, which is then over the others.

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
    """Return the input of the last softmax, or the output where the model ends in none."""
    made = makers_of(model.graph)
    shapes, found = shapes_of(model), str(model.graph.output[0].name)
    name = found
    while name in made and made[name].op_type in ("Softmax", "LogSoftmax", "Flatten", "Squeeze", "Identity"):
        is_softmax = made[name].op_type.endswith("Softmax")
        name = str(made[name].input[0])
        shape = shapes.get(name, [])
        if is_softmax and len(shape) > 1 and shape[1] == classes:
            found = name
    return found
