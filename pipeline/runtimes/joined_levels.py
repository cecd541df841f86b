"""Lets OpenVINO copy the levels that a Concat joins, where the quantizer behind the Concat would not change them.

ONNX Runtime wants a quantizer on either side of a Concat to join int8 values. OpenVINO moves the one behind to each of
the inputs, where it rounds them once more, though all have its levels: in a DenseNet, which joins every feature again
in each layer that follows, hundreds of passes over the data. So it is taken out of what OpenVINO compiles, in memory.
No value changes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import openvino

Levels = tuple[bytes, ...]  # of a quantizer and its dequantizer: the bounds, the zero point, the scale


def copy_joined_levels(network: openvino.Model) -> int:
    """Remove, in place, the quantizers behind Concats of values that have their levels; return how many."""
    joined: dict[str, Levels] = {}  # of Concats without a quantizer, by name
    for node in network.get_ordered_ops():
        if node.get_type_name() == "Concat":
            _copy_levels_of(node, joined)
    return len(joined)


def _copy_levels_of(concat: openvino.Node, joined: dict[str, Levels]) -> None:
    """Let what reads a Concat through a quantizer read it as it is, where the levels are those of its inputs."""
    after = _readers(concat)
    if [each.get_type_name() for each in after] != ["FakeQuantize"]:
        return
    dequantizers = list(_dequantizers(after[0]))
    inputs = [value.get_node() for value in concat.input_values()]
    found = {joined.get(each.get_name()) or _levels(each) for each in inputs} | {_levels(each) for each in dequantizers}
    levels = found.pop()
    if found or levels is None:
        return
    for each in dequantizers:
        each.output(0).replace(concat.output(0))
    joined[concat.get_name()] = levels


def _readers(node: openvino.Node) -> list[openvino.Node]:
    return [each.get_node() for each in node.output(0).get_target_inputs()]


def _dequantizers(quantizer: openvino.Node) -> Iterator[openvino.Node]:
    """Yield the last operator of each dequantizer: those of a QuantizeLinear are Convert, Subtract, Multiply."""
    for node in _readers(quantizer):
        if node.get_type_name() in ("Convert", "Subtract"):
            yield from _dequantizers(node)
        else:
            yield node


def _levels(multiply: openvino.Node) -> Levels | None:
    """Return the levels of a dequantized value; None where it is anything else."""
    found: list[bytes] = []
    node = multiply
    for kind in ("Multiply", "Subtract", "Convert", "FakeQuantize"):
        while kind == "FakeQuantize" and node.get_type_name() == "Convert":
            node = node.input_value(0).get_node()
        if node.get_type_name() != kind:
            if kind == "Subtract":  # a zero point of 0
                continue
            return None
        for value in node.input_values()[1:]:
            constant = value.get_node()
            if constant.get_type_name() == "Convert":
                constant = constant.input_value(0).get_node()
            if constant.get_type_name() != "Constant":
                return None
            found.append(np.asarray(constant.data, np.float32).tobytes())
        node = node.input_value(0).get_node()
    return tuple(found)
