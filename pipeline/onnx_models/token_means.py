"""Means and sums over the tokens of [images, tokens, channels], in a form that every runtime computes alike."""

from __future__ import annotations

import onnx
from onnx import helper

from pipeline.onnx_models.graphs import Names, integers_tensor, makers_of, remove_attributes
from pipeline.onnx_models.pooling import axes_of, float32_ranks

_TOKENS = 1  # the axis
# No quantizer follows these.
_FLOAT = ("LayerNormalization", "RMSNormalization")


def give_four_axes(model: onnx.ModelProto) -> int:
    """Let each mean and sum over tokens read a tensor of four axes, the last of size 1, in place; return how many.

    Of uint8 values, as there are between quantizers, OpenVINO 2026.4.1 computes it for the first image of a batch alone
    where the tensor has three axes; the others get other values.

    Args:
        model: float32, opset 17 or later, constants folded.
    """
    graph, names, ranks = model.graph, Names(model), float32_ranks(model)
    constants, makers = {tensor.name: tensor for tensor in graph.initializer}, makers_of(graph)
    written = 0
    for node in [node for node in graph.node if node.op_type in ("ReduceMean", "ReduceSum")]:
        maker = makers.get(node.input[0])
        if ranks.get(node.input[0]) != 3 or (maker is not None and maker.op_type in _FLOAT):
            continue
        axes = axes_of(node, constants, 3)
        if axes is None or _TOKENS not in axes or 0 in axes:
            continue
        _widen(graph, names, node, axes)
        written += 1
    if written:
        del graph.value_info[:]
    return written


def _widen(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, axes: tuple[int, ...]) -> None:
    """Put an axis of size 1 behind the others before a reduction, and take it away after it."""
    added, given, target = integers_tensor(graph, names, f"{node.name}_added", [-1]), node.input[0], node.output[0]
    wide, reduced = names.free(f"{given}_of_four_axes"), names.free(f"{target}_of_four_axes")
    if len(node.input) > 1:
        node.input[1] = integers_tensor(graph, names, f"{node.name}_axes", list(axes))
    else:
        remove_attributes(node, "axes")
        node.attribute.append(helper.make_attribute("axes", list(axes)))
    node.input[0], node.output[0] = wide, reduced
    place = next(index for index, each in enumerate(graph.node) if each.output[:] == [reduced])
    after = helper.make_node("Squeeze", [reduced, added], [target], names.free(f"{node.name}_squeeze"))
    before = helper.make_node("Unsqueeze", [given, added], [wide], names.free(f"{node.name}_unsqueeze"))
    graph.node.insert(place + 1, after)
    graph.node.insert(place, before)
