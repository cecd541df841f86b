"""A float32 ONNX model as a torch module, for the tools that start from torch: every tool then has the same weights.

Each node is a call of its own, so that no module is used twice: torchao refuses a ReLU used twice in place, as
torchvision's ResNets do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor

Attributes = dict[str, Any]


def conv(given: list[Tensor], attributes: Attributes) -> Tensor:
    x, weight, bias = (*given, None)[:3]
    pads = attributes.get("pads", [0, 0, 0, 0])
    assert pads[:2] == pads[2:], f"Conv: pads {pads}, expected the same at either end"
    stride, dilation = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    return F.conv2d(x, weight, bias, stride, pads[:2], dilation, attributes.get("group", 1))


def max_pool(given: list[Tensor], attributes: Attributes) -> Tensor:
    pads = attributes.get("pads", [0, 0, 0, 0])
    assert pads[:2] == pads[2:], f"MaxPool: pads {pads}, expected the same at either end"
    return F.max_pool2d(
        given[0],
        attributes["kernel_shape"],
        attributes["strides"],
        pads[:2],
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )


def gemm(given: list[Tensor], attributes: Attributes) -> Tensor:
    assert attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA", 0)
    x, weight, bias = (*given, None)[:3]
    assert weight is not None
    return F.linear(x, weight if attributes.get("transB", 0) else weight.T.contiguous(), bias)


OPERATORS: dict[str, Callable[[list[Tensor], Attributes], Tensor]] = {
    "Add": lambda given, _: given[0] + given[1],
    "Conv": conv,
    "Flatten": lambda given, attributes: torch.flatten(given[0], attributes.get("axis", 1)),
    "Gemm": gemm,
    "GlobalAveragePool": lambda given, _: F.adaptive_avg_pool2d(given[0], 1),
    "MaxPool": max_pool,
    "Relu": lambda given, _: F.relu(given[0]),
}


class OnnxModule(torch.nn.Module):
    """Computes the nodes of an ONNX graph in their order. Its operators are those of ResNets."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        graph = onnx.load(path).graph
        unknown = sorted({node.op_type for node in graph.node} - set(OPERATORS))
        if unknown:
            raise SystemExit(f"{path}: onnx_in_torch.py has no operator {unknown[0]}")
        self._given, self._made = graph.input[0].name, graph.output[0].name
        self._nodes = [
            (OPERATORS[node.op_type], list(node.input), node.output[0], read_attributes(node)) for node in graph.node
        ]
        self._parameters_of = {tensor.name: f"p{index}" for index, tensor in enumerate(graph.initializer)}
        for tensor in graph.initializer:
            values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            self.register_parameter(self._parameters_of[tensor.name], torch.nn.Parameter(values, requires_grad=False))

    def forward(self, images: Tensor) -> Tensor:
        values = {self._given: images}
        for name, parameter in self._parameters_of.items():
            values[name] = getattr(self, parameter)
        for operator, given, made, attributes in self._nodes:
            values[made] = operator([values[name] for name in given if name], attributes)
        return values[self._made]


def read_attributes(node: onnx.NodeProto) -> Attributes:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
