"""Max and Min with one number, rewritten as ReLU and Clip, which quantizers absorb."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pipeline.onnx_models.pooling import float32_ranks


def use_clips(model: onnx.ModelProto) -> None:
    """Rewrite each Max or Min of a float32 activation and one number as a Relu or Clip, in place.

    The results are the same, except for NaN.

    Args:
        model: constants folded, opset 11 or later; nodes have names.
    """
    bounds = [node for node in model.graph.node if node.op_type in ("Max", "Min") and len(node.input) == 2]
    ranks = float32_ranks(model) if bounds else {}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in bounds:
        _rewrite(model.graph, node, constants, ranks)


def _rewrite(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    constants: Mapping[str, onnx.TensorProto],
    ranks: Mapping[str, int],
) -> None:
    data, number = node.input if node.input[1] in constants else reversed(node.input)
    if data in constants or number not in constants or data not in ranks:
        return
    value = numpy_helper.to_array(constants[number])
    if value.size != 1 or value.ndim > ranks[data] or np.isnan(value).any():
        return
    if node.op_type == "Max" and value.reshape(()) == 0:
        made = helper.make_node("Relu", [data], node.output, node.name)
    else:
        bound = f"{node.name}_bound"
        graph.initializer.append(numpy_helper.from_array(value.reshape(()), bound))
        bounds = [bound] if node.op_type == "Max" else ["", bound]
        made = helper.make_node("Clip", [data, *bounds], node.output, node.name)
    node.CopyFrom(made)
