"""Input of an ONNX classifier, float32 images [N, 3, H, W], and the shapes that it declares.

Whatever can be converted to that without changing an answer is converted; the rest raises an error with its cause.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import DataError
from pipeline.onnx_models import input_axes, pixel_inputs
from pipeline.onnx_models.graphs import (
    Names,
    constants_of,
    integer,
    integers,
    rename,
)

BATCH = "N"
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_PIXELS = (TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64)  # what images are given as before a Cast
_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
_CHANNELS = 3
_TRAINING = ("train", "learning_phase")  # `keras_learning_phase` of Keras's older files
_FEW = (1, 2, 4)  # channels of other images than RGB


def take_input(model: onnx.ModelProto, path: Path, chw: tuple[int, int, int]) -> int | None:
    """Make the input float [N, *chw] with a free N, in place; return the batch fixed by the file, or None.

    An input with channels last gets a Transpose. One of grey images reads the luminance of RGB. One of pixels as
    integers reads the same numbers as floats: what casts them has nothing to do any more. The output's shape is
    removed.

    Raises:
        DataError: not one input of such images.
    """
    graph = model.graph
    value = _only_input(model, path)
    kind = value.type.tensor_type.elem_type
    dims = _dims_of(graph, value, path)
    given = shown(value)
    input_axes.give_four_axes(model, value, dims)
    last = has_channels_last(graph, value.name, dims)
    found = (dims[3], dims[1], dims[2]) if last else (dims[1], dims[2], dims[3])
    channels = found[0] or channels_read(graph, value.name) or _CHANNELS
    if channels not in (1, _CHANNELS):
        raise DataError(
            f"{path}: input {value.name!r} is {given}, images of {channels} channels; only networks of 3 "
            "channels (RGB) or 1 (grey) are taken"
        )
    if any(size not in (None, wanted) for size, wanted in zip(found[1:], chw[1:], strict=True)):
        layout = ", channels last" if last else ""
        _, height, width = found
        way = f" (--size {height} of build does it)" if height == width else ""
        raise DataError(
            f"{path}: input {value.name!r} is {given}{layout}; the build file wants [N, "
            f"{', '.join(map(str, chw))}]; set frontend.shape and process_ops to the model's size{way}"
        )
    if last:
        _put_channels_first(model, value.name)
    if takes_pixels(value):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
        pixel_inputs.read_dequantized(model, value)
        pixel_inputs.keep_integer_arithmetic(model, value, kind)
    if channels == 1:
        pixel_inputs.read_luminance(model, value)
    declare_shapes(model, chw)
    return dims[0]


def takes_pixels(value: onnx.ValueInfoProto) -> bool:
    """Tell whether an input is of whole numbers, which pixels of images are given as."""
    return value.type.tensor_type.elem_type in _PIXELS


def declare_shapes(model: onnx.ModelProto, chw: tuple[int, int, int]) -> None:
    """Declare the input [N, *chw]; remove the output's shape, and everything inferred from another batch."""
    shape = model.graph.input[0].type.tensor_type.shape
    del shape.dim[:]
    shape.dim.add().dim_param = BATCH
    for size in chw:
        shape.dim.add().dim_value = size
    model.graph.output[0].type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]


def fix_batch(model: onnx.ModelProto) -> None:
    """Declare the input as one image, and remove the output's shape."""
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    dim.Clear()
    dim.dim_value = 1
    model.graph.output[0].type.tensor_type.ClearField("shape")


def declare_classes(model: onnx.ModelProto, classes: int) -> None:
    """Declare the output [N, classes], with the N of the input."""
    shape = model.graph.output[0].type.tensor_type.shape
    del shape.dim[:]
    shape.dim.add().CopyFrom(model.graph.input[0].type.tensor_type.shape.dim[0])
    shape.dim.add().dim_value = classes


def describe_input(model: onnx.ModelProto, path: Path) -> tuple[str, tuple[int | None, int | None]]:
    """Return name, height and width of a file's one image input; None is a free axis.

    Raises:
        DataError: it has not one input of images.
    """
    value = _only_input(model, path)
    dims = _dims_of(model.graph, value, path)
    last = has_channels_last(model.graph, value.name, dims)
    return str(value.name), ((dims[1], dims[2]) if last else (dims[2], dims[3]))


def _dims_of(graph: onnx.GraphProto, value: onnx.ValueInfoProto, path: Path) -> input_axes.Sizes:
    """Return the four sizes of images, None where one is free.

    Raises:
        DataError: the input is not of images, or of a type that they are not given as.
    """
    shape = value.type.tensor_type.shape
    if any(dim.HasField("dim_value") and dim.dim_value == 0 for dim in shape.dim):
        raise DataError(
            f"{path}: input {value.name!r} is {shown(value)}: an axis of size 0 holds no image, and ONNX Runtime "
            "takes none for it; export it with free axes (dynamic_axes or dynamic_shapes)"
        )
    dims = input_axes.image_sizes(graph, value)
    if dims is None:
        advice = ""
        if len(shape.dim) == 2:
            advice = ": nothing behind it tells in which order a row holds an image; export it with images as its input"
        if len(shape.dim) == 1 and value.type.tensor_type.elem_type in (TensorProto.UINT8, TensorProto.STRING):
            advice = (
                ": it reads image files, which its graph decodes; give the network from before decoding and "
                "preprocessing were added, which process_ops of the build file describe"
            )
        raise DataError(f"{path}: input {value.name!r} is {shown(value)}; wanted images, [N, 3, H, W]{advice}")
    if value.type.tensor_type.elem_type not in (*FLOATS, *_PIXELS):
        raise DataError(
            f"{path}: input {value.name!r} is {kind_of(value)}: wanted images as float32, or pixels of 0 to 255 as "
            "uint8, int32 or int64; export it with an input of one of these"
        )
    return dims


def _only_input(model: onnx.ModelProto, path: Path) -> onnx.ValueInfoProto:
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    for value in [value for value in graph.input if value.name in constants]:
        graph.input.remove(value)
    if len(graph.input) > 1:  # unused ones may be left from training
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        for value in [value for value in graph.input if value.name not in read]:
            graph.input.remove(value)
    for value in [value for value in graph.input if len(graph.input) > 1 and _is_switch(value)]:
        graph.initializer.append(numpy_helper.from_array(np.zeros(_sizes(value), np.bool_), value.name))
        graph.input.remove(value)
    if len(graph.input) != 1:
        listed = ", ".join(f"{value.name} {shown(value)}" for value in graph.input) or "none"
        raise DataError(f"{path}: {len(graph.input)} inputs ({listed}); wanted one, of images [N, 3, H, W]")
    image: onnx.ValueInfoProto = graph.input[0]
    return image


def _is_switch(value: onnx.ValueInfoProto) -> bool:
    """Tell whether an input is one truth value, named as what switches training on: it is off."""
    if not any(word in value.name.lower() for word in _TRAINING):
        return False
    is_known = all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    return value.type.tensor_type.elem_type == TensorProto.BOOL and is_known and math.prod(_sizes(value)) == 1


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    return [int(dim.dim_value) for dim in value.type.tensor_type.shape.dim]


def has_channels_last(graph: onnx.GraphProto, name: str, dims: list[int | None]) -> bool:
    """Tell whether images are [N, H, W, C]; where the sizes are ambiguous, by the Transposes that read them."""
    if dims[1] == _CHANNELS:
        return False
    if dims[3] == _CHANNELS or (dims[3] in _FEW and dims[1] not in _FEW):
        return True
    readers = [node for node in graph.node if name in node.input]
    return dims[3] is None and bool(readers) and all(_is_transpose(node, _TO_FIRST) for node in readers)


def channels_read(graph: onnx.GraphProto, name: str) -> int | None:
    """Return the number of input channels of the convolution that reads a tensor."""
    constants = constants_of(graph)
    for node in graph.node:
        if name in node.input and node.op_type == "Conv" and node.input[1] in constants:
            return int(constants[node.input[1]].dims[1]) * integer(node, "group", 1)
        if name in node.input and _is_transpose(node, _TO_FIRST):
            return channels_read(graph, node.output[0])
    return None


def _is_transpose(node: onnx.NodeProto, axes: list[int]) -> bool:
    return node.op_type == "Transpose" and integers(node, "perm") == axes


def _put_channels_first(model: onnx.ModelProto, name: str) -> None:
    """Let the graph read its input with channels first: Transposes to that order go, other readers get one."""
    graph, names = model.graph, Names(model)
    outputs = {value.name for value in graph.output}
    for node in [node for node in graph.node if name in node.input and _is_transpose(node, _TO_FIRST)]:
        if node.output[0] not in outputs:
            target = node.output[0]
            graph.node.remove(node)
            rename(graph, target, f"{name}\0")  # not yet `name`, whose readers want channels last
    last = names.free(f"{name}_channels_last")
    rename(graph, name, last)
    rename(graph, f"{name}\0", name)
    if any(last in node.input for node in graph.node):
        node_name = names.free("input_channels_last")
        graph.node.insert(0, helper.make_node("Transpose", [name], [last], node_name, perm=_TO_LAST))


def kind_of(value: onnx.ValueInfoProto) -> str:
    """Return the element type of a tensor for a message, as `float`; `a sequence` or the like of what is no tensor."""
    other = value.type.WhichOneof("value")
    if other not in (None, "tensor_type"):
        return f"a {str(other).removesuffix('_type')}"
    return str(TensorProto.DataType.Name(value.type.tensor_type.elem_type)).lower()


def shown(value: onnx.ValueInfoProto) -> str:
    """Return element type and shape of a tensor for a message, as `float [N, 3, 224, 224]`."""
    if value.type.WhichOneof("value") not in (None, "tensor_type"):
        return f"({kind_of(value)})"
    shape = value.type.tensor_type.shape
    dims = ", ".join(str(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?") for dim in shape.dim)
    return f"{kind_of(value)} [{dims}]"
