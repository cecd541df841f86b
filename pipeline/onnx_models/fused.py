"""Operators of ONNX Runtime that its optimizer puts in place of several standard ones, as those again.

Only what a classifier may hold is known here: activations fused into convolutions and products, convolutions whose
channels are last, Gelu, residual sums fused into a LayerNormalization, and attention. The other operators stay, and the
file is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from pipeline.onnx_models import fused_attention as attention
from pipeline.onnx_models.fused_maker import Maker
from pipeline.onnx_models.graphs import Names, attributes_of, integer, number, replace_nodes, text

_DOMAIN = "com.microsoft"
_LAYER_NORM = 17  # the opset since which LayerNormalization is standard


def split_fused(model: onnx.ModelProto, version: int) -> None:
    """Replace ONNX Runtime's fused operators that are known here, in place.

    Args:
        version: the opset.
    """
    if not any(node.domain == _DOMAIN for node in model.graph.node):
        return
    names = Names(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        split = _SPLIT.get(node.op_type) if node.domain == _DOMAIN else None
        needs = _LAYER_NORM if node.op_type == "SkipLayerNormalization" else 0
        made = [] if split is None or version < needs else split(Maker(model.graph, names, node, version))
        nodes += made or [node]
    replace_nodes(model.graph, nodes)


def _conv(make: Maker) -> list[onnx.NodeProto]:
    own = attributes_of(make.node)
    kept = {name: value for name, value in own.items() if not name.startswith("activation")}
    x = make.op("Conv", *[name for name in make.node.input[:3] if name], **kept)
    if make.input(3):
        x = make.op("Add", x, make.input(3))
    return _activate(make, x, text(make.node, "activation", ""), list(own.get("activation_params", ())))


def _gemm(make: Maker) -> list[onnx.NodeProto]:
    own = attributes_of(make.node)
    kept = {name: value for name, value in own.items() if not name.startswith("activation")}
    x = make.op("Gemm", *[name for name in make.node.input if name], **kept)
    parameters = [own[name] for name in ("activation_alpha", "activation_beta") if name in own]
    return _activate(make, x, text(make.node, "activation", ""), parameters)


def _activate(make: Maker, x: str, kind: str, parameters: Sequence[float]) -> list[onnx.NodeProto]:
    if kind == "Clip":
        make.op("Clip", x, *(make.constant(bound) for bound in parameters))
    elif kind:
        attributes: dict[str, Any] = dict(zip(("alpha", "beta"), map(float, parameters), strict=False))
        make.op(kind, x, **attributes)
    return make.finish()


def _matmul(make: Maker) -> list[onnx.NodeProto]:
    one, other = make.node.input
    first, second = integer(make.node, "transA", 0), integer(make.node, "transB", 0)
    is_matrix = len(make.dims_of_constant(other) or ()) == 2
    if second and is_matrix:
        other, second = make.op("Transpose", other, perm=[1, 0]), 0
    if first or second:
        left, right = "ji" if first else "ij", "kj" if second else "jk"
        behind = "" if is_matrix else "..."
        x = make.op("Einsum", one, other, equation=f"...{left},{behind}{right}->...ik")
    else:
        x = make.op("MatMul", one, other)
    factor = number(make.node, "alpha", 1.0)
    if factor != 1:
        make.op("Mul", x, make.constant(factor))
    return make.finish()


def _gelu(make: Maker) -> list[onnx.NodeProto]:
    """Gelu, and with a bias BiasGelu."""
    x = make.input(0)
    if make.input(1):
        x = make.op("Add", x, make.input(1))
    erf = make.op("Erf", make.op("Div", x, make.constant(2**0.5)))
    make.op("Mul", make.op("Mul", x, make.op("Add", erf, make.constant(1))), make.constant(0.5))
    return make.finish()


def _fast_gelu(make: Maker) -> list[onnx.NodeProto]:
    x = make.input(0)
    if make.input(1):
        x = make.op("Add", x, make.input(1))
    cube = make.op("Mul", make.op("Mul", x, make.op("Mul", x, x)), make.constant(0.044715))
    inner = make.op("Mul", make.op("Add", x, cube), make.constant((2 / np.pi) ** 0.5))
    half = make.op("Mul", x, make.constant(0.5))
    make.op("Mul", half, make.op("Add", make.op("Tanh", inner), make.constant(1)))
    return make.finish()


def _quick_gelu(make: Maker) -> list[onnx.NodeProto]:
    x = make.input(0)
    scaled = make.op("Mul", x, make.constant(number(make.node, "alpha", 1.702)))
    make.op("Mul", x, make.op("Sigmoid", scaled))
    return make.finish()


def _skip_layer_norm(make: Maker) -> list[onnx.NodeProto]:
    """Outputs: the norm, and as the fourth the sum that it is of."""
    if any(make.node.output[1:3]):
        return []
    x = make.op("Add", make.input(0), make.input(1))
    if make.input(4):
        x = make.op("Add", x, make.input(4))
    if len(make.node.output) > 3 and make.node.output[3]:
        x = make.op("Identity", x, target=make.node.output[3])
    scale = [name for name in (make.input(2), make.input(3)) if name]
    make.op("LayerNormalization", x, *scale, axis=-1, epsilon=number(make.node, "epsilon", 1e-12))
    return make.finish()


def _nhwc_conv(make: Maker) -> list[onnx.NodeProto]:
    """Channels are last in images and in weights."""
    x = make.op("Transpose", make.input(0), perm=[0, 3, 1, 2])
    weights = make.op("Transpose", make.input(1), perm=[0, 3, 1, 2])
    bias = [make.input(2)] if make.input(2) else []
    x = make.op("Conv", x, weights, *bias, **attributes_of(make.node))
    make.op("Transpose", x, perm=[0, 2, 3, 1])
    return make.finish()


# Each returns the nodes that stand for one, none where they do not compute all that it does.
_SPLIT: dict[str, Callable[[Maker], list[onnx.NodeProto]]] = {
    "Attention": attention.packed,
    "MultiHeadAttention": attention.multi_head,
    "NhwcConv": _nhwc_conv,
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "TransposeMatMul": _matmul,
    "Gelu": _gelu,
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_norm,
}
