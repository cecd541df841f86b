"""Labels beside or around the scores, as converters of scikit-learn write them with operators of ai.onnx.ml."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from pipeline.onnx_models.graphs import attributes_of, makers_of, remove_unused

_DOMAIN = "ai.onnx.ml"


def take_labels_off(model: onnx.ModelProto) -> None:
    """Let a ZipMap give the scores that it puts under labels, and drop outputs computed by ai.onnx.ml, in place.

    An output that depends on an operator of that domain stays where no other output does without.
    """
    graph = model.graph
    for node in graph.node:
        if node.op_type == "ZipMap" and node.domain == _DOMAIN:
            node.CopyFrom(helper.make_node("Identity", node.input, node.output, node.name))
            for value in graph.output:
                if value.name == node.output[0]:
                    value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, None))
                    value.type.tensor_type.shape.SetInParent()
    if not any(node.domain == _DOMAIN for node in graph.node):
        _undeclare(model)
        return
    labels = [value for value in graph.output if _depends_on_domain(graph, value.name)]
    if len(labels) < len(graph.output):
        for value in labels:
            graph.output.remove(value)
        remove_unused(graph)
        _undeclare(model)


def zipped_labels(model: onnx.ModelProto, output: str) -> list[Any] | None:
    """Return the labels under which a ZipMap gives the scores, in their order; None where none makes the output."""
    node = makers_of(model.graph).get(output)
    if node is None or node.op_type != "ZipMap":
        return None
    attributes = attributes_of(node)
    if "classlabels_strings" in attributes:
        return [label.decode() for label in attributes["classlabels_strings"]]
    return list(attributes.get("classlabels_int64s", []))


def unzipped(rows: Sequence[dict[Any, float]], labels: Sequence[Any]) -> npt.NDArray[np.float32]:
    """Return float32 [N, classes] of what a ZipMap gives, a dictionary for each image."""
    return np.array([[row[label] for label in labels] for row in rows], np.float32)


def _depends_on_domain(graph: onnx.GraphProto, name: str) -> bool:
    makers = makers_of(graph)
    waiting, seen = [name], set[str]()
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or node.output[0] in seen:
            continue
        if node.domain == _DOMAIN:
            return True
        seen.add(node.output[0])
        waiting += node.input
    return False


def _undeclare(model: onnx.ModelProto) -> None:
    if any(node.domain == _DOMAIN for node in model.graph.node):
        return
    kept = [opset for opset in model.opset_import if opset.domain != _DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
