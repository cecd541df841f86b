"""A float32 model -> the same in float16, with float32 input and output."""

from __future__ import annotations

import warnings

import onnx


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with weights and activations in float16; `model` stays as it is.

    A softmax at the end stays float32: float16 would give many of a thousand classes one and the same score, and the
    order of the best five with it. Weights beyond float16's range are cut to it.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    softmax = _take_softmax(copy.graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one for each weight that rounds to 0
        converted = ONNXModel(convert_float_to_float16(copy, keep_io_types=True))
    if softmax is not None:
        converted.graph().node.append(softmax)
        converted.graph().output[0].name = softmax.output[0]
    converted.topological_sort()  # the converter appends its casts at the end
    result: onnx.ModelProto = converted.model
    return result


def _take_softmax(graph: onnx.GraphProto) -> onnx.NodeProto | None:
    """Remove and return the softmax that makes the output, which then is what went into it."""
    output = graph.output[0]
    last: onnx.NodeProto = next(node for node in graph.node if output.name in node.output)
    if last.op_type != "Softmax":
        return None
    graph.node.remove(last)
    output.name = last.input[0]
    return last
