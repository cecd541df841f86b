"""A float32 model -> the same in float16, with float32 input and output."""

from __future__ import annotations

import warnings

import onnx

from pipeline.onnx_models.graphs import remove_unused
from pipeline.onnx_models.scores import Scores, find_scores

_WEIGHTED = ("Conv", "Gemm", "MatMul")


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with weights and activations in float16; `model` stays as it is.

    The softmax at the end stays float32: in float16 many of a thousand classes would get the same score, and the order
    of the best five would be lost. Weights beyond float16's range are clipped to it.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _leave_out_empty_inputs(copy.graph)
    tail = _take_tail(copy) if find_scores(model) is not Scores.LOGITS else onnx.GraphProto()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one for each weight that rounds to 0
        converted = ONNXModel(convert_float_to_float16(copy, keep_io_types=True))
    if tail.node:
        graph = converted.graph()
        graph.node.extend(tail.node)
        graph.initializer.extend(tail.initializer)
        del graph.output[:]
        graph.output.extend(tail.output)
    converted.topological_sort()  # the converter appends its casts at the end
    result: onnx.ModelProto = converted.model
    return result


def _leave_out_empty_inputs(graph: onnx.GraphProto) -> None:
    """Leave out by name the inputs of each Resize that are empty tensors, as opset 11 does not.

    The converter keeps scales in float32 by a Cast, behind which nobody sees that they are empty and the sizes count.
    """
    empty = {tensor.name for tensor in graph.initializer if 0 in tensor.dims}
    for node in graph.node:
        if node.op_type == "Resize":
            node.input[:] = ["" if name in empty else name for name in node.input]
    remove_unused(graph)


def _take_tail(model: onnx.ModelProto) -> onnx.GraphProto:
    """Remove and return the nodes after the last layers with weights; what they read becomes the model's outputs."""
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    names = _after_the_last_layers(graph)
    tail = onnx.GraphProto(node=[node for node in graph.node if node.name in names], output=graph.output)
    for node in [node for node in graph.node if node.name in names]:
        graph.node.remove(node)
    read = {name for node in tail.node for name in node.input if name}
    for tensor in [tensor for tensor in graph.initializer if tensor.name in read]:
        _rename(tail, tensor.name, f"{tensor.name}_float32")  # the other layers may read it too
        tail.initializer.append(tensor)
        tail.initializer[-1].name = f"{tensor.name}_float32"
    own = {value.name for value in (*graph.initializer, *graph.input)} | {
        name for node in tail.node for name in node.output
    }
    known = {value.name: value for value in (*inferred.value_info, *inferred.output)}
    del graph.output[:]
    graph.output.extend(known[name] for name in sorted(read - own))
    return tail


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _after_the_last_layers(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the nodes that only the output depends on, and no layer with weights."""
    before = {name for node in graph.node if node.op_type in _WEIGHTED for name in node.input}
    for node in reversed(graph.node):
        if before.intersection(node.output):
            before.update(node.input)
    return {node.name for node in graph.node if node.op_type not in _WEIGHTED and not before.intersection(node.output)}
