"""Padding by `auto_pad: SAME_*` beside gaps in a window (dilations), which runtimes take otherwise than ONNX says.

ONNX Runtime does not run such a convolution, and pads such a pool as one without gaps, so that its result is smaller;
OpenVINO pads both as ONNX says (findings/pooling-same-with-gaps.sh).
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper

from pipeline.errors import DataError
from pipeline.onnx_models.graphs import constants_of, integers, remove_attributes, shapes_of, text

_POOLS = ("MaxPool", "AveragePool", "LpPool")


def write_same_padding(model: onnx.ModelProto, path: Path) -> None:
    """Write the padding of convolutions with gaps in numbers, in place.

    Args:
        model: whose input is declared [N, C, H, W].

    Raises:
        DataError: a pool pads so, and its runtimes do not agree about it.
    """
    nodes = [node for node in model.graph.node if node.op_type in ("Conv", *_POOLS) and _is_same_with_gaps(node)]
    shapes, constants = (shapes_of(model), constants_of(model.graph)) if nodes else ({}, {})
    for node in nodes:
        if node.op_type in _POOLS:
            raise DataError(
                f"{path}: node {node.name!r} ({node.op_type}) has gaps in its window (dilations) and auto_pad, which "
                "runtimes compute differently; export it with its padding in numbers (pads)"
            )
        kernel = list(constants[node.input[1]].dims[2:]) if node.input[1] in constants else []
        kernel = integers(node, "kernel_shape") or kernel
        sizes = [size for size in shapes.get(node.input[0], [])[2:] if isinstance(size, int)]
        if kernel and len(sizes) == len(kernel):
            pads = _same_pads(node, kernel, sizes)
            remove_attributes(node, "auto_pad", "pads")
            node.attribute.append(helper.make_attribute("pads", pads))


def _is_same_with_gaps(node: onnx.NodeProto) -> bool:
    is_same = text(node, "auto_pad", "NOTSET").startswith("SAME")
    return is_same and any(gap > 1 for gap in integers(node, "dilations") or [])


def _same_pads(node: onnx.NodeProto, kernel: list[int], sizes: list[int]) -> list[int]:
    """Return pads, begins and then ends, with which the result has size / stride places, rounded up, on each axis."""
    ones, begins, ends = [1] * len(kernel), [], []
    strides, dilations = (integers(node, name) or ones for name in ("strides", "dilations"))
    for size, width, stride, gap in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + gap * (width - 1) + 1 - size, 0)
        smaller, larger = total // 2, total - total // 2
        is_upper = text(node, "auto_pad", "") == "SAME_UPPER"
        begins.append(smaller if is_upper else larger)
        ends.append(larger if is_upper else smaller)
    return begins + ends
