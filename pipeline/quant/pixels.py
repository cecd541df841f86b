"""Raw pixels as a network's input: the normalisation is folded into the first convolution, which reads uint8.

With x the pixels, convolving (x / 255 - mean) / std by W equals convolving x by W / (255 std), with the output for the
mean pixel subtracted from the bias. A padding of zeros in normalised values is one of the mean pixel in x, so the image
gets a border of that pixel before the convolution. Pixels are whole numbers: a quantizer of scale 1 and zero point 0
loses nothing, so the input needs none.

ImageNet's mean is no whole pixel. The border then is the nearest whole one, and one more channel, zero but for the
border, takes away through weights of its own what that is too much. Without it, small networks of random weights change
by 1.5% of their answers.

That the bias hears of the mean pixel through the weights as they are rounded is bias correction's part: without it the
rounding errors of a whole kernel, times a hundred, would end in the bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.onnx_models.graphs import attributes_of
from pipeline.quant.graphs import constants

Float64 = npt.NDArray[np.float64]

# What the first convolution reads: the pixels with their border, whole numbers in 0..255. No network has such a name.
PIXELS = "int8_pipeline.pixels"
LIMIT = 255.0
# The largest weight of the channel that marks the border, as a share of what the image's weights may sum to: small
# beside them, so that it costs them no step of their scale. The mark is larger in turn, up to 24 for ImageNet's mean;
# the image's pixels, whose weights are rounded as coarsely, are larger still.
_MARK_SHARE = 1 / 16
_FILL, _MARK = ".border", "mark"  # ends of the names of the border's colours, and of the marked plane
_EXACT = 1e-6  # px: what float32 holds of a mean anyway


def are_input_of(model: onnx.ModelProto) -> bool:
    """Tell whether the model takes pixels, by `fold_normalisation`."""
    return any(PIXELS in node.output for node in model.graph.node)


def obstacle(model: onnx.ModelProto, mean: Sequence[float]) -> str | None:
    """Return why a model cannot take pixels, or None where it can.

    Args:
        mean: of the normalisation, in units of a 0..1 image.
    """
    name = model.graph.input[0].name
    readers = [node for node in model.graph.node if name in node.input]
    known = constants(model)
    if len(readers) != 1 or readers[0].op_type != "Conv":
        return f"the input is read by {', '.join(node.op_type for node in readers) or 'nothing'}, not by one Conv"
    attributes = attributes_of(readers[0])
    if attributes.get("group", 1) != 1 or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        return "the first convolution is grouped, or its padding depends on the input size (auto_pad)"
    if not all(each in known for each in readers[0].input[1:]):
        return "the first convolution's weights are computed"
    if any(attributes.get("pads", ())) and np.abs(_border_of(mean)[1]).sum() > LIMIT:
        return "its mean is far from any pixel"
    return None


def _border_of(mean: Sequence[float]) -> tuple[Float64, Float64]:
    """Return the whole pixel nearest to the mean, and what it exceeds the mean by, both float64 [C] in 0..255."""
    wanted = LIMIT * np.asarray(mean, np.float64)
    nearest = np.clip(np.rint(wanted), 0.0, LIMIT)
    excess = nearest - wanted
    return nearest, np.where(np.abs(excess) > _EXACT, excess, 0.0)


def fold_normalisation(model: onnx.ModelProto, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let a model without `obstacle` read pixels, float32 [N, C, H, W] in 0..255, in place; its input keeps its name.

    Args:
        mean, std: of the normalisation that it read before, in units of a 0..1 image, a number for each channel.
    """
    graph = model.graph
    name = graph.input[0].name
    at, conv = next((at, node) for at, node in enumerate(graph.node) if name in node.input)
    known = constants(model)
    weights = numpy_helper.to_array(known[conv.input[1]]).astype(np.float64)
    bias = numpy_helper.to_array(known[conv.input[2]]) if len(conv.input) > 2 else np.zeros(len(weights))
    per_channel = np.asarray(std, np.float64)[:, None, None]
    shift = np.asarray(mean, np.float64)[:, None, None] / per_channel
    pads = next((each for each in conv.attribute if each.name == "pads"), None)
    border = list(pads.ints) if pads is not None else []
    if pads is not None:
        conv.attribute.remove(pads)
    colour, excess = _border_of(mean)
    of_pixels = weights / (255.0 * per_channel)
    mark = 0
    if any(border) and excess.any():
        mark = min(int(LIMIT), math.ceil(np.abs(excess).sum() / _MARK_SHARE))
        of_mark = -(of_pixels * excess[:, None, None]).sum(axis=1, keepdims=True) / mark
        of_pixels = np.concatenate([of_pixels, of_mark], axis=1)
    made = {
        f"{conv.name}.of_pixels": of_pixels,
        f"{conv.name}.bias_of_pixels": bias - (weights * shift).sum(axis=(1, 2, 3)),
    }
    graph.initializer.extend(numpy_helper.from_array(value.astype(np.float32), key) for key, value in made.items())
    del conv.input[:]
    conv.input.extend([PIXELS, *made])
    for node in reversed(_border(graph, name, border, colour, mark)):
        graph.node.insert(at, node)
    used = {each for node in graph.node for each in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _border(graph: onnx.GraphProto, name: str, pads: Sequence[int], colour: Float64, mark: int) -> list[onnx.NodeProto]:
    """Return the nodes that put a border of one pixel's colour around the image.

    Args:
        pads: top, left, bottom, right.
        colour: [C], of the border.
        mark: what one more channel has on the border, and nowhere else; 0: no such channel.
    """
    if not any(pads):
        return [helper.make_node("Identity", [name], [PIXELS], f"{PIXELS}.as_they_are")]
    top, left, bottom, right = pads
    planes = [f"{PIXELS}.plane_{c}" for c in range(len(colour))]
    sizes, widths = f"{PIXELS}.sizes", f"{PIXELS}.widths"
    graph.initializer.append(numpy_helper.from_array(np.ones(len(colour), np.int64), sizes))
    around = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
    graph.initializer.append(numpy_helper.from_array(around, widths))
    nodes = [helper.make_node("Split", [name, sizes], planes, f"{PIXELS}.split", axis=1)]
    for plane, value in zip(planes, colour, strict=True):
        fill = f"{plane}{_FILL}"
        graph.initializer.append(numpy_helper.from_array(np.float32(value), fill))
        nodes.append(helper.make_node("Pad", [plane, widths, fill], [f"{plane}.bordered"], f"{plane}.pad"))
    bordered = [f"{plane}.bordered" for plane in planes]
    if mark:
        nodes += _mark_border(graph, name, pads, mark)
        bordered.append(f"{PIXELS}.marks")
    return [*nodes, helper.make_node("Concat", bordered, [PIXELS], f"{PIXELS}.concat", axis=1)]


def _mark_border(graph: onnx.GraphProto, name: str, pads: Sequence[int], mark: int) -> list[onnx.NodeProto]:
    """Return the nodes that repeat a plane, `mark` on the border and 0 elsewhere, for each image of the batch."""
    top, left, bottom, right = pads
    height, width = (axis.dim_value for axis in graph.input[0].type.tensor_type.shape.dim[2:])
    plane = np.pad(np.zeros((height, width), np.float32), ((top, bottom), (left, right)), constant_values=mark)
    stored, batch, ones, shape = (f"{PIXELS}.{what}" for what in (_MARK, "batch", "ones", "marks_shape"))
    graph.initializer.append(numpy_helper.from_array(plane[None, None], stored))
    graph.initializer.append(numpy_helper.from_array(np.ones(3, np.int64), ones))
    return [
        helper.make_node("Shape", [name], [batch], f"{PIXELS}.count", start=0, end=1),
        helper.make_node("Concat", [batch, ones], [shape], f"{PIXELS}.shape", axis=0),
        helper.make_node("Expand", [stored, shape], [f"{PIXELS}.marks"], f"{PIXELS}.expand"),
    ]


def mean_input(model: onnx.ModelProto, mean: Sequence[float]) -> Float64:
    """Return what the first convolution reads where an image is the mean pixel everywhere: float64 [its channels]."""
    reader = next(node for node in model.graph.node if PIXELS in node.input)
    channels = constants(model)[reader.input[1]].dims[1]
    return np.pad(LIMIT * np.asarray(mean, np.float64), (0, channels - len(mean)))  # the mark is only on the border


def border_nodes(model: onnx.ModelProto) -> frozenset[str]:
    """Return the names of the nodes between a model's input and its `PIXELS`: they move pixels and compute nothing."""
    return frozenset(node.name for node in model.graph.node if node.name.startswith(f"{PIXELS}."))


def take_uint8(model: onnx.ModelProto) -> None:
    """Turn the input of a quantized model that reads pixels into uint8, in place.

    The quantizer of `PIXELS`, of scale 1 and zero point 0, is removed: the dequantizer reads the pixels directly.
    Where the first convolution stays in float there is none, and a Cast takes its place.
    """
    graph = model.graph
    graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    for tensor in graph.initializer:
        if tensor.name.startswith(f"{PIXELS}.") and tensor.name.endswith((_FILL, _MARK)):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.uint8), tensor.name))
    # Shape inference recorded them as float.
    inner = {name for node in graph.node if node.name in border_nodes(model) for name in node.output}
    for value in [value for value in graph.value_info if value.name in inner]:
        graph.value_info.remove(value)
    at = 1 + max(at for at, node in enumerate(graph.node) if PIXELS in node.output)
    quantizer = next((n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == PIXELS), None)
    if quantizer is not None:
        replaced, target = quantizer.output[0], PIXELS
        graph.node.remove(quantizer)
    else:
        replaced, target = PIXELS, f"{PIXELS}.float"
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == replaced:
                node.input[position] = target
    if quantizer is None:
        graph.node.insert(at, helper.make_node("Cast", [PIXELS], [target], target, to=TensorProto.FLOAT))
