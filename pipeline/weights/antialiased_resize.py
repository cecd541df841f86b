"""Antialiased resizing of torch, exported to ONNX as products with two constant matrices.

ONNX has the operator since opset 18 only, where runtimes place the filter otherwise than torch; the matrices are
torch's own weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import onnx as torch_onnx
from torch.onnx import symbolic_helper

_FIRST_OPSET = 9
_EXPORTER: Any = torch_onnx  # its functions for symbolics have no types
_HELPER: Any = symbolic_helper


def register() -> None:
    """Let the exporter of this process write both antialiased resizes; of images whose sizes the trace knows."""
    for mode in ("bilinear", "bicubic"):
        _EXPORTER.register_custom_op_symbolic(f"aten::_upsample_{mode}2d_aa", _symbolic_of(mode), _FIRST_OPSET)


def _symbolic_of(mode: str) -> Any:
    def symbolic(g: Any, image: Any, size: Any, align_corners: Any, *scales: Any) -> Any:
        sizes = _HELPER._get_tensor_sizes(image)
        height, width = (sizes or [None, None])[-2:]
        if height is None or width is None:
            raise ValueError("an antialiased resize of a size that the trace does not know")
        aligned = bool(_HELPER._get_const(align_corners, "i", "align_corners"))
        shape = _output_size(size, scales, (height, width))
        rows = _weights(height, shape[0], mode, aligned)
        columns = _weights(width, shape[1], mode, aligned)
        across = g.op("MatMul", image, g.op("Constant", value_t=columns.T.contiguous()))
        return g.op("MatMul", g.op("Constant", value_t=rows), across)

    return symbolic


def _output_size(size: Any, scales: tuple[Any, ...], input_hw: tuple[int, int]) -> tuple[int, int]:
    """Return height and width after the resize: as given, or by factors, which are rounded down."""
    if not _HELPER._is_none(size):
        height, width = _HELPER._get_const(size, "is", "output_size")
        return int(height), int(width)
    factors = _HELPER._get_const(scales[0], "fs", "scale_factors")
    return int(input_hw[0] * factors[0]), int(input_hw[1] * factors[1])


def _weights(before: int, after: int, mode: str, align_corners: bool) -> torch.Tensor:
    """Return float32 [after, before], the share that each of `before` pixels has in each of `after`."""
    ones = torch.eye(before, dtype=torch.float64)[None, None]
    resized = torch.nn.functional.interpolate(
        ones, size=(after, before), mode=mode, align_corners=align_corners, antialias=True
    )
    return resized[0, 0].to(torch.float32)
