"""Operators of ONNX Runtime that its optimizer puts in place of several standard ones, as those again.

Only what a classifier on CPUs may hold is known here: activations fused into convolutions and products, Gelu, and
residual sums fused into a LayerNormalization. The other operators stay, and the file is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from pipeline.onnx_models.graphs import Names, add_constant, attributes_of, integer, number, replace_nodes, text

_DOMAIN = "com.microsoft"
_LAYER_NORM = 17  # the opset since which LayerNormalization is standard


class _Maker:
    """Makes standard nodes in place of one node."""

    def __init__(self, graph: onnx.GraphProto, names: Names, node: onnx.NodeProto) -> None:
        self.node = node
        self.made: list[onnx.NodeProto] = []
        self._graph, self._names = graph, names

    def constant(self, value: float) -> str:
        return add_constant(self._graph, self._names, f"{self.node.output[0]}_number", np.float32(value))

    def op(self, kind: str, *inputs: str, target: str | None = None, **attributes: Any) -> str:
        name = target or self._names.free(f"{self.node.output[0]}_{kind.lower()}")
        node_name = self._names.free(f"{self.node.name or self.node.output[0]}_{kind}")
        self.made.append(helper.make_node(kind, inputs, [name], node_name, **attributes))
        return name

    def rank_of_constant(self, name: str) -> int | None:
        """Return the number of axes of a constant; None for an activation."""
        return next((len(tensor.dims) for tensor in self._graph.initializer if tensor.name == name), None)

    def input(self, index: int) -> str:
        return str(self.node.input[index]) if index < len(self.node.input) else ""

    def finish(self) -> list[onnx.NodeProto]:
        """Let the last node write what the fused one did; return the nodes."""
        self.made[-1].output[0] = self.node.output[0]
        return self.made


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
        if split is None or version < needs or any(node.output[1:3]):
            nodes.append(node)
        else:
            nodes += split(_Maker(model.graph, names, node))
    replace_nodes(model.graph, nodes)


def _conv(make: _Maker) -> list[onnx.NodeProto]:
    own = attributes_of(make.node)
    kept = {name: value for name, value in own.items() if not name.startswith("activation")}
    x = make.op("Conv", *[name for name in make.node.input[:3] if name], **kept)
    if make.input(3):
        x = make.op("Add", x, make.input(3))
    return _activate(make, x, text(make.node, "activation", ""), list(own.get("activation_params", ())))


def _gemm(make: _Maker) -> list[onnx.NodeProto]:
    own = attributes_of(make.node)
    kept = {name: value for name, value in own.items() if not name.startswith("activation")}
    x = make.op("Gemm", *[name for name in make.node.input if name], **kept)
    parameters = [own[name] for name in ("activation_alpha", "activation_beta") if name in own]
    return _activate(make, x, text(make.node, "activation", ""), parameters)


def _activate(make: _Maker, x: str, kind: str, parameters: Sequence[float]) -> list[onnx.NodeProto]:
    if kind == "Clip":
        make.op("Clip", x, *(make.constant(bound) for bound in parameters))
    elif kind:
        attributes: dict[str, Any] = dict(zip(("alpha", "beta"), map(float, parameters), strict=False))
        make.op(kind, x, **attributes)
    return make.finish()


def _matmul(make: _Maker) -> list[onnx.NodeProto]:
    one, other = make.node.input
    first, second = integer(make.node, "transA", 0), integer(make.node, "transB", 0)
    is_matrix = make.rank_of_constant(other) == 2
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


def _gelu(make: _Maker) -> list[onnx.NodeProto]:
    """Gelu, and with a bias BiasGelu."""
    x = make.input(0)
    if make.input(1):
        x = make.op("Add", x, make.input(1))
    erf = make.op("Erf", make.op("Div", x, make.constant(2**0.5)))
    make.op("Mul", make.op("Mul", x, make.op("Add", erf, make.constant(1))), make.constant(0.5))
    return make.finish()


def _fast_gelu(make: _Maker) -> list[onnx.NodeProto]:
    x = make.input(0)
    if make.input(1):
        x = make.op("Add", x, make.input(1))
    cube = make.op("Mul", make.op("Mul", x, make.op("Mul", x, x)), make.constant(0.044715))
    inner = make.op("Mul", make.op("Add", x, cube), make.constant((2 / np.pi) ** 0.5))
    half = make.op("Mul", x, make.constant(0.5))
    make.op("Mul", half, make.op("Add", make.op("Tanh", inner), make.constant(1)))
    return make.finish()


def _quick_gelu(make: _Maker) -> list[onnx.NodeProto]:
    x = make.input(0)
    scaled = make.op("Mul", x, make.constant(number(make.node, "alpha", 1.702)))
    make.op("Mul", x, make.op("Sigmoid", scaled))
    return make.finish()


def _skip_layer_norm(make: _Maker) -> list[onnx.NodeProto]:
    """Outputs: the norm, and as the fourth the sum that it is of."""
    x = make.op("Add", make.input(0), make.input(1))
    if make.input(4):
        x = make.op("Add", x, make.input(4))
    if len(make.node.output) > 3 and make.node.output[3]:
        x = make.op("Identity", x, target=make.node.output[3])
    scale = [name for name in (make.input(2), make.input(3)) if name]
    make.op("LayerNormalization", x, *scale, axis=-1, epsilon=number(make.node, "epsilon", 1e-12))
    return make.finish()


_SPLIT: dict[str, Callable[[_Maker], list[onnx.NodeProto]]] = {
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
