"""An ONNX network in torch: forward from any activations to any others, with gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import numpy_helper

from pipeline.errors import in_a_line
from pipeline.learn.operators import OPERATORS, UnsupportedError
from pipeline.onnx_models.graphs import attributes_of, constants_of

Tensor = torch.Tensor
Change = Callable[[str, Tensor], Tensor]  # of an activation: its name and what was computed -> what readers get


@dataclass(frozen=True)
class Node:
    """A node of the graph; an input or output that is left out has no name."""

    name: str
    operator: str
    attributes: Mapping[str, Any]
    inputs: Sequence[str]
    outputs: Sequence[str]


class Network:
    """A float32 or QDQ model; what it computes is that of the file to float32 rounding.

    Raises:
        UnsupportedError: an operator of it is not among `OPERATORS`.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        known = constants_of(model.graph)
        self.input = model.graph.input[0].name
        self.output = model.graph.output[0].name
        self.constants = {name: torch.from_numpy(numpy_helper.to_array(each).copy()) for name, each in known.items()}
        self.nodes = [
            Node(node.name, node.op_type, attributes_of(node), list(node.input), list(node.output))
            for node in model.graph.node
            if node.output[0] not in known
        ]
        for node in self.nodes:
            if node.operator not in OPERATORS:
                raise UnsupportedError(f"operator {node.operator}")

    def activations(self) -> set[str]:
        """Return the names of everything that depends on the input, the input included."""
        found = {self.input}
        for node in self.nodes:
            if found.intersection(node.inputs):
                found.update(node.outputs)
        return found

    def run(
        self,
        given: Mapping[str, Tensor],
        wanted: Collection[str],
        *,
        nodes: Sequence[Node] | None = None,
        change: Change | None = None,
        replaced: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return the wanted activations; others are dropped once they were read.

        Args:
            given: activations to begin from, [N, ...].
            wanted: names.
            nodes: those that lie between, in graph order; None: all.
            change: applied to each activation as it is computed.
            replaced: constants in the place of the model's own, by name.
        """
        nodes = self.nodes if nodes is None else nodes
        left = Counter(name for node in nodes for name in node.inputs)
        values = dict(given)
        constants = {**self.constants, **(replaced or {})}
        for node in nodes:
            if node.outputs[0] not in values:
                inputs = [_find(name, values, constants) for name in node.inputs]
                for name, value in zip(node.outputs, _apply(node, inputs), strict=False):
                    values[name] = value if change is None else change(name, value)
            for name in node.inputs:
                left[name] -= 1
                if not left[name] and name not in wanted:
                    values.pop(name, None)
        return {name: values[name] for name in wanted}


def _find(name: str, values: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> Tensor | None:
    if not name:
        return None
    return values[name] if name in values else constants[name]


def _apply(node: Node, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    try:
        made = OPERATORS[node.operator](node.attributes, inputs)
    except (RuntimeError, TypeError, ValueError) as err:  # of torch: a form of the operator that it does not take
        raise UnsupportedError(f"{node.operator} {node.name}: {in_a_line(err)}") from err
    return made if isinstance(made, tuple) else (made,)
