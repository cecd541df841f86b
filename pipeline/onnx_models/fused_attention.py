"""ONNX Runtime's Attention and MultiHeadAttention as standard operators, as exporters write an attention.

Taken is what image classifiers have: every position attends to all. Masks, keys of earlier calls and rotary positions
are left, and the file is refused.

Semantics: ONNX Runtime, docs/ContribOperators.md.
"""

from __future__ import annotations

import onnx

from pipeline.onnx_models.fused_maker import Maker
from pipeline.onnx_models.graphs import integer, integers, number

_FLAGS = ("unidirectional", "do_rotary", "past_present_share_buffer")


def packed(make: Maker) -> list[onnx.NodeProto]:
    """Attention: one matrix makes queries, keys and values, [images, positions, channels] each; none if masked."""
    node, heads = make.node, integer(make.node, "num_heads", 0)
    weights = make.dims_of_constant(make.input(1))
    if not heads or weights is None or len(weights) != 2 or make.input(3) or make.input(4) or make.input(6):
        return []
    if any(integer(node, flag, 0) for flag in _FLAGS) or any(node.output[1:]):
        return []
    sizes = integers(node, "qkv_hidden_sizes") or [weights[1] // 3] * 3
    x = make.op("MatMul", make.input(0), make.input(1))
    if make.input(2):
        x = make.op("Add", x, make.input(2))
    return _attend(make, make.split(x, sizes, axis=2), sizes[0], make.input(5))


def multi_head(make: Maker) -> list[onnx.NodeProto]:
    """MultiHeadAttention of queries, keys and values, [images, positions, channels] each; none where it is more."""
    node = make.node
    biases = make.dims_of_constant(make.input(3))
    width = biases[0] // 3 if biases else make.width(make.input(0))
    if not width or (make.input(3) and not biases) or not make.input(1) or not make.input(2):
        return []
    if make.input(4) or any(node.input[6:]) or any(node.output[1:]) or any(integer(node, flag, 0) for flag in _FLAGS):
        return []
    parts = list(node.input[:3])
    if biases:
        added = make.split(make.input(3), [width] * 3, axis=0)
        parts = [make.op("Add", part, bias) for part, bias in zip(parts, added, strict=True)]
    return _attend(make, parts, width, make.input(5))


def _attend(make: Maker, parts: list[str], width: int, bias: str) -> list[onnx.NodeProto]:
    """Finish an attention.

    Args:
        parts: queries, keys, values: [images, positions, channels].
        width: channels of the queries.
        bias: added to the scores, [images or 1, heads or 1, positions, positions]; empty: none.
    """
    heads = integer(make.node, "num_heads", 0)
    by_head = [make.op("Reshape", part, make.sizes([0, 0, heads, -1])) for part in parts]
    queries, values = (make.op("Transpose", by_head[index], perm=[0, 2, 1, 3]) for index in (0, 2))
    keys = make.op("Transpose", by_head[1], perm=[0, 2, 3, 1])
    scale = number(make.node, "scale", 0.0) or (width / heads) ** -0.5
    scores = make.op("MatMul", make.op("Mul", queries, make.constant(scale)), keys)
    if bias:
        scores = make.op("Add", scores, bias)
    attended = make.op("MatMul", make.op("Softmax", scores, axis=3), values)
    make.op("Reshape", make.op("Transpose", attended, perm=[0, 2, 1, 3]), make.sizes([0, 0, -1]))
    return make.finish()
