"""Means and maxima over height and width, and over windows, as operators that runtimes compute alike, in int8 too.

Between quantizers, ONNX Runtime computes ReduceMean in float32 and GlobalAveragePool in int8. Every ResNet that torch's
current exporter writes ends in a ReduceMean. The two agree to float32 rounding.

A quantizer after a ReduceMax or GlobalMaxPool OpenVINO computes within it, and keeps the maximum in uint8 before it is
divided by the scale (findings/reduce-max-before-quantizer.sh). Its MaxPool over the whole map, or over all channels, is
right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from pipeline.onnx_models.graphs import (
    Names,
    add_constant,
    integer,
    integers,
    integers_tensor,
    remove_attributes,
    shapes_of,
    text,
    without_weights,
)

_SPATIAL = (2, 3)


def use_global_pooling(model: onnx.ModelProto) -> int:
    """Rewrite each ReduceMean over both spatial axes of a feature map as GlobalAveragePool, in place; return how many.

    Args:
        model: float32, constants folded; ranks are found by shape inference.
    """
    ranks = float32_ranks(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    rewritten = 0
    for node in [node for node in model.graph.node if node.op_type == "ReduceMean" and ranks.get(node.input[0]) == 4]:
        means = _means_from(model.graph, node, constants)
        if means:
            _replace(model.graph, means, "GlobalAveragePool")
            rewritten += 1
    return rewritten


def use_pool_over_map(model: onnx.ModelProto) -> int:
    """Rewrite each GlobalMaxPool, and ReduceMax over both spatial axes, as MaxPool; in place; return how many.

    Args:
        model: float32, constants folded; maps whose size shape inference does not find are left as they are.
    """
    shapes, constants = shapes_of(model), {tensor.name: tensor for tensor in model.graph.initializer}
    rewritten = 0
    for node in [node for node in model.graph.node if node.op_type in ("GlobalMaxPool", "ReduceMax")]:
        shape = shapes.get(node.input[0], [])
        window = [size for size in shape[2:] if isinstance(size, int)]
        is_global = node.op_type == "GlobalMaxPool"
        if len(shape) == 4 and len(window) == 2 and (is_global or axes_of(node, constants, 4) == _SPATIAL):
            _replace(model.graph, [node], "MaxPool", kernel_shape=window)
            rewritten += 1
    return rewritten


def use_pool_over_channels(model: onnx.ModelProto) -> int:
    """Rewrite each ReduceMax and ReduceMin over the channels, as spatial attention has (CBAM), as MaxPool; in place.

    Returns:
        How many. Shapes that inference does not find, but for the batch, are left as they are.
    """
    names, shapes, ranks = Names(model), shapes_of(model), float32_ranks(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    rewritten = 0
    for node in [node for node in model.graph.node if node.op_type in ("ReduceMax", "ReduceMin")]:
        shape = shapes.get(node.input[0], [])
        sizes = [size for size in shape[1:] if isinstance(size, int)]
        if (
            ranks.get(node.input[0]) in (3, 4)
            and len(sizes) == len(shape) - 1
            and axes_of(node, constants, len(shape)) == (1,)
        ):
            _pool_channels(model.graph, names, node, sizes)
            rewritten += 1
    return rewritten


def _pool_channels(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, sizes: Sequence[int]) -> None:
    """Replace a maximum or minimum over axis 1 by a MaxPool over the rows of [N, 1, channels, positions], in place.

    Args:
        sizes: of the node's input, without the batch.
    """
    channels, *others = sizes
    rows = integers_tensor(graph, names, f"{node.name}_rows", [0, 1, channels, math.prod(others)])
    kept = [0, 1, *others] if keeps_axes(node) else [0, *others]
    wanted = integers_tensor(graph, names, f"{node.name}_shape", kept)
    is_minimum = node.op_type == "ReduceMin"
    steps: list[tuple[str, list[str], dict[str, Any]]] = [
        *([("Neg", [], {})] if is_minimum else []),
        ("Reshape", [rows], {}),
        ("MaxPool", [], {"kernel_shape": [channels, 1]}),
        ("Reshape", [wanted], {}),
        *([("Neg", [], {})] if is_minimum else []),
    ]
    made, source = [], node.input[0]
    for number, (kind, more, attributes) in enumerate(steps, start=1):
        last = number == len(steps)
        target = node.output[0] if last else names.free(f"{node.output[0]}_{number}")
        made.append(
            helper.make_node(kind, [source, *more], [target], names.free(f"{node.name}_{number}"), **attributes)
        )
        source = target
    at = list(graph.node).index(node)
    graph.node.remove(node)
    for each in reversed(made):
        graph.node.insert(at, each)


def pad_before_means(model: onnx.ModelProto) -> int:
    """Rewrite each AveragePool that counts its padding and rounds its size up as Pad and AveragePool; return how many.

    Such a pool divides the last window by the part of it within the padded map. OpenVINO and ONNX Runtime's int8 kernel
    divide by the whole window; without padding in the pool, both are right.

    Args:
        model: of opset 11 or later, whose input is declared [N, C, H, W]; it is changed in place.
    """
    names, shapes, written = Names(model), shapes_of(model), 0
    for node in [node for node in model.graph.node if node.op_type == "AveragePool"]:
        pads = integers(node, "pads") or []
        counts = integer(node, "ceil_mode", 0) and integer(node, "count_include_pad", 0)
        if not counts or not any(pads) or text(node, "auto_pad", "NOTSET") != "NOTSET":
            continue
        before, after = shapes.get(node.input[0], [])[2:], shapes.get(node.output[0], [])[2:]
        padded = [
            size + low + high
            for size, low, high in zip(before, pads, pads[len(pads) // 2 :], strict=False)
            if isinstance(size, int)
        ]
        if not padded or [_pooled(node, axis, size) for axis, size in enumerate(padded)] != after:
            continue  # a window would begin in the padding after the map, where the rewritten pool has none
        half = len(pads) // 2
        widths = integers_tensor(model.graph, names, f"{node.name}_widths", [0, 0, *pads[:half], 0, 0, *pads[half:]])
        bordered = names.free(f"{node.input[0]}_bordered")
        place = next(index for index, each in enumerate(model.graph.node) if each.output[:] == node.output[:])
        model.graph.node.insert(
            place, helper.make_node("Pad", [node.input[0], widths], [bordered], names.free(f"{node.name}_pad"))
        )
        node = model.graph.node[place + 1]
        node.input[0] = bordered
        remove_attributes(node, "pads", "count_include_pad")
        written += 1
    return written


def _pooled(node: onnx.NodeProto, axis: int, size: int) -> int:
    """Return how many windows a pool without padding has along an axis, its size rounded up."""
    window = (integers(node, "kernel_shape") or [])[axis] - 1
    span = window * (integers(node, "dilations") or [1] * (axis + 1))[axis] + 1
    return -((span - size) // (integers(node, "strides") or [1] * (axis + 1))[axis]) + 1


def convolve_dilated_means(model: onnx.ModelProto) -> int:
    """Rewrite each AveragePool with gaps in its window as a depthwise convolution, in place; return how many.

    Between quantizers ONNX Runtime makes an int8 pool of it, which knows no gaps, and does not open the model. Where
    padding does not count, the mean is multiplied by what its share of the window lacks.

    Args:
        model: of opset 19 or later, input [N, C, H, W]; pools of maps whose size shape inference does not find, or
            whose size is rounded up, or with a window of padding alone, are left as they are.
    """
    names, shapes, written = Names(model), shapes_of(model), 0
    for node in [node for node in model.graph.node if node.op_type == "AveragePool"]:
        gaps, window = integers(node, "dilations") or [], integers(node, "kernel_shape") or []
        shape = shapes.get(node.input[0], [])
        sizes = [size for size in shape[1:] if isinstance(size, int)]
        fixed = len(shape) == 4 and len(sizes) == 3 and text(node, "auto_pad", "NOTSET") == "NOTSET"
        if set(gaps) <= {1} or not fixed or integer(node, "ceil_mode", 0):
            continue
        lacking = _lacking(node, sizes[1:])
        if lacking is not None and not np.isfinite(lacking).all():
            continue
        weights = np.full((sizes[0], 1, *window), 1 / math.prod(window), np.float32)
        weights_name = add_constant(model.graph, names, f"{node.name}_weights", weights)
        target = node.output[0]
        mean = target if lacking is None else names.free(f"{target}_of_window")
        settings: dict[str, Any] = {
            name: found for name in ("dilations", "kernel_shape", "pads", "strides") if (found := integers(node, name))
        }
        made = [helper.make_node("Conv", [node.input[0], weights_name], [mean], node.name, group=sizes[0], **settings)]
        if lacking is not None:
            factors = add_constant(model.graph, names, f"{node.name}_factors", lacking)
            made.append(helper.make_node("Mul", [mean, factors], [target], names.free(f"{node.name}_scaling")))
        at = list(model.graph.node).index(node)
        model.graph.node.remove(node)
        for each in reversed(made):
            model.graph.node.insert(at, each)
        written += 1
    return written


def _lacking(node: onnx.NodeProto, sizes: Sequence[int]) -> npt.NDArray[np.float32] | None:
    """Return by what the mean over the whole window of a pool is to be multiplied, [height, width]; None: by 1.

    Inf where a window holds nothing but padding.

    Args:
        sizes: height and width of what the pool reads.
    """
    pads = integers(node, "pads") or [0] * 4
    if integer(node, "count_include_pad", 0) or not any(pads):
        return None
    shares = []
    for axis, size in enumerate(sizes):
        kernel, gap = (integers(node, "kernel_shape") or [])[axis], (integers(node, "dilations") or [])[axis]
        stride = (integers(node, "strides") or [1, 1])[axis]
        starts = np.arange(-pads[axis], size + pads[axis + 2] - (kernel - 1) * gap, stride)
        places = starts[:, None] + gap * np.arange(kernel)
        shares.append(((places >= 0) & (places < size)).mean(axis=1))
    with np.errstate(divide="ignore"):
        found: npt.NDArray[np.float32] = (1 / np.outer(*shares)).astype(np.float32)
    return found


def float32_ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Return the number of axes of every float32 activation for which shape inference finds it."""
    graph = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    kinds = {
        value.name: value.type.tensor_type
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    return {name: len(kind.shape.dim) for name, kind in kinds.items() if kind.elem_type == onnx.TensorProto.FLOAT}


def axes_of(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], rank: int) -> tuple[int, ...] | None:
    """Return the axes that a reduction goes over, from 0, sorted; None where they are computed, or all."""
    for attribute in node.attribute:
        if attribute.name == "axes":
            return tuple(sorted(axis % rank for axis in attribute.ints))
    if len(node.input) > 1 and node.input[1] in constants:
        axes = numpy_helper.to_array(constants[node.input[1]]).reshape(-1)
        return tuple(sorted(int(axis) % rank for axis in axes)) or None
    return None


def keeps_axes(node: onnx.NodeProto) -> bool:
    """Tell whether a reduction leaves axes of size 1."""
    return next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1) == 1


def _means_from(
    graph: onnx.GraphProto, node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """Return the ReduceMeans that together are a mean over height and width, `node` first; none where there are none.

    One over both axes, or one over each: x.mean(3).mean(2).
    """
    axes = axes_of(node, constants, 4)
    if axes == _SPATIAL:
        return [node]
    readers = [other for other in graph.node if node.output[0] in other.input]
    if axes not in ((2,), (3,)) or len(readers) != 1 or readers[0].op_type != "ReduceMean":
        return []
    if any(value.name == node.output[0] for value in graph.output) or keeps_axes(node) != keeps_axes(readers[0]):
        return []
    second = axes_of(readers[0], constants, 4 if keeps_axes(node) else 3)
    wanted = (5 - axes[0],) if keeps_axes(node) else (2,)  # without the first axis, what is left is axis 2
    return [node, readers[0]] if second == wanted else []


def _replace(graph: onnx.GraphProto, reductions: Sequence[onnx.NodeProto], pool: str, **attributes: Any) -> None:
    node = reductions[0]
    source, target, keeps = node.input[0], reductions[-1].output[0], keeps_axes(node)
    pooled = target if keeps else f"{target}_pooled"
    made = [helper.make_node(pool, [source], [pooled], node.name, **attributes)]
    if not keeps:
        made.append(helper.make_node("Flatten", [pooled], [target], f"{node.name}_flatten", axis=1))
    at = list(graph.node).index(node)
    for each in reductions:
        graph.node.remove(each)
    for each in reversed(made):
        graph.node.insert(at, each)
