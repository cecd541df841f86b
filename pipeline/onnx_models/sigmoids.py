"""Sigmoids that exporters write as 1 / (1 + exp(-x)), written as Sigmoid.

Between quantizers, exp takes the whole range of 8 bits for its largest value, and nothing is left of the others; of
Sigmoid it is known where 8 bits do.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pipeline.onnx_models.graphs import Names, constants_of, makers_of, remove_unused

Makers = Mapping[str, onnx.NodeProto]
Constants = Mapping[str, onnx.TensorProto]


def use_sigmoids(model: onnx.ModelProto) -> int:
    """Rewrite each 1 / (1 + exp(-x)), x / (1 + exp(-x)) and exp(x) / (1 + exp(x)), in place; return how many.

    Args:
        model: float32, constants folded.
    """
    graph, names = model.graph, Names(model)
    makers, constants = makers_of(graph), constants_of(graph)
    rewritten = 0
    for node in [node for node in graph.node if node.op_type in ("Div", "Reciprocal")]:
        above = "" if node.op_type == "Reciprocal" else node.input[0]
        raised = _raised_plus_one(node.input[-1], makers, constants)
        source = None if raised is None else _negated(raised.input[0], makers, constants)
        if raised is None or (source is None and above != raised.output[0]):
            continue
        alone = source is None or not above or _is_number(above, 1.0, constants)
        target = node.output[0] if alone else names.free(f"{node.output[0]}_sigmoid")
        made = [helper.make_node("Sigmoid", [source or raised.input[0]], [target], names.free(f"{node.name}_sigmoid"))]
        if not alone:
            made.append(helper.make_node("Mul", [above, target], [node.output[0]], node.name))
        place = next(index for index, each in enumerate(graph.node) if each.output[:] == node.output[:])
        del graph.node[place]
        for each in reversed(made):
            graph.node.insert(place, each)
        rewritten += 1
    if rewritten:
        remove_unused(graph)
    return rewritten


def _raised_plus_one(name: str, makers: Makers, constants: Constants) -> onnx.NodeProto | None:
    """Return the Exp where a tensor is 1 + exp(x)."""
    addition = makers.get(name)
    if addition is None or addition.op_type != "Add":
        return None
    for one, other in (tuple(addition.input), tuple(addition.input)[::-1]):
        maker = makers.get(other)
        if _is_number(one, 1.0, constants) and maker is not None and maker.op_type == "Exp":
            return maker
    return None


def _negated(name: str, makers: Makers, constants: Constants) -> str | None:
    """Return x where a tensor is -x."""
    maker = makers.get(name)
    if maker is None:
        return None
    if maker.op_type == "Neg":
        return str(maker.input[0])
    if maker.op_type == "Mul":
        for factor, other in (tuple(maker.input), tuple(maker.input)[::-1]):
            if _is_number(factor, -1.0, constants):
                return str(other)
    return None


def _is_number(name: str, wanted: float, constants: Constants) -> bool:
    """Tell whether a tensor is a constant of one element that equals a number."""
    if name not in constants:
        return False
    values = numpy_helper.to_array(constants[name])
    return bool(values.size == 1 and np.float64(values.reshape(-1)[0]) == wanted)
