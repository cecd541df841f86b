"""What additions read of convolutions: how far it has to be covered, and which of two is rounded.

A ReLU behind an addition cuts sums below zero off, so that an addend far below zero may be raised until the sum is
zero: `needed` tells how far. The outputs of convolutions in a ResNet reach further down than up, and take a quarter
less of a range for that. They are counted on some images only (`counting.Counter.read_later`).

OpenVINO computes an addition of two convolutions within one of them, whose output it then does not round, and rounds
the output of the other. It takes the convolution of the addition's first input where it can. The noise of either is
that of its step, so the one with the wider step comes first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from pipeline.onnx_models.graphs import makers_of, readers_of
from pipeline.quant.graphs import constants
from pipeline.quant.qmath import Range

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Addend:
    """A convolution's output that only an addition before a ReLU reads."""

    other: str  # tensor that is added to it
    both: bool  # the other is such an output too

    def needed(self, values: Float32, others: Float32) -> Float32:
        """Return what values may be raised to, at most zero, such that the ReLU gives the same.

        Args:
            values: float32 [n] below zero.
            others: float32 [n], what is added to each.
        """
        excess = np.minimum(values + others, np.float32(0))
        # Of two that may be raised each takes half, so that both together do not go beyond.
        raised: Float32 = np.minimum(values - (excess / np.float32(2) if self.both else excess), np.float32(0))
        return raised


def find_addends(model: onnx.ModelProto, observed: Collection[str]) -> dict[str, Addend]:
    """Return by name those of the observed activations that are such addends."""
    makers, readers = makers_of(model.graph), readers_of(model.graph)
    outputs = {value.name for value in model.graph.output}
    found: dict[str, Addend] = {}
    for node in model.graph.node:
        after = readers.get(node.output[0], [])
        if node.op_type != "Add" or [each.op_type for each in after] != ["Relu"] or node.output[0] in outputs:
            continue
        if not set(node.input) <= makers.keys() or node.input[0] == node.input[1]:
            continue
        cut = [
            name
            for name in node.input
            if makers[name].op_type == "Conv" and name in observed and len(readers[name]) == 1 and name not in outputs
        ]
        for name in cut:
            other = node.input[1] if name == node.input[0] else node.input[0]
            found[name] = Addend(other, both=len(cut) == 2)
    return found


def added_within(model: onnx.ModelProto, ranges: Mapping[str, Range]) -> frozenset[str]:
    """Return the activations that OpenVINO adds up within the convolution that writes them, and so does not round.

    Args:
        model: float32.
        ranges: of quantized activations; `put_wider_first` orders by them what the int8 model adds up.
    """
    makers, readers = makers_of(model.graph), readers_of(model.graph)
    found: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Add" and set(node.input) <= makers.keys():
            written = [name for name in node.input if makers[name].op_type == "Conv" and len(readers[name]) == 1]
            if all(name in ranges for name in written):
                widths = [ranges[name].high - ranges[name].low for name in written]
                found.update(written[at] for at in np.argsort(widths)[-1:])
    return frozenset(found)


def put_wider_first(model: onnx.ModelProto) -> None:
    """Let each Add of two quantized convolutions in a QDQ model read the one with the wider step first, in place.

    Additions give the same values in either order.
    """
    known, makers = constants(model), makers_of(model.graph)
    for node in model.graph.node:
        if node.op_type == "Add" and len(node.input) == 2:
            first, second = (_step_of_convolution(name, makers, known) for name in node.input)
            if first is not None and second is not None and first < second:
                node.input[0], node.input[1] = node.input[1], node.input[0]


def _step_of_convolution(
    name: str, makers: Mapping[str, onnx.NodeProto], known: Mapping[str, onnx.TensorProto]
) -> float | None:
    """Return the step that a convolution's output was rounded to; None of anything else."""
    dequantizer = makers.get(name)
    quantizer = makers.get(dequantizer.input[0]) if dequantizer is not None and len(dequantizer.input) > 1 else None
    if dequantizer is None or quantizer is None or quantizer.op_type != "QuantizeLinear":
        return None
    source = makers.get(quantizer.input[0])
    is_convolution = source is not None and source.op_type == "Conv"
    return float(numpy_helper.to_array(known[quantizer.input[1]])) if is_convolution else None
