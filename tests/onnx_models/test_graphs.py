"""graphs.py: who computes and who reads a tensor, and the attributes of a node."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.onnx_models.graphs import attributes_of, makers_of, readers_of


@pytest.fixture
def graph() -> onnx.GraphProto:
    """x -> MaxPool (no indices) -> a; a * a -> b; Clip of b without a lower bound -> y; a is read by If's body too."""
    body = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["inner"], "inside")],
        "body",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("MaxPool", ["x"], ["a", ""], "pool", kernel_shape=[2, 2], auto_pad="VALID"),
        helper.make_node("Mul", ["a", "a"], ["b"], "square"),
        helper.make_node("If", ["yes"], ["c"], "if", then_branch=body, else_branch=body),
        helper.make_node("Clip", ["b", "", "high"], ["y"], "clip"),
        helper.make_node("Split", ["y"], ["left", "right"], "split", axis=1),
    ]
    return helper.make_graph(nodes, "graph", [], [])


def test_makers_of_names_every_output_but_those_left_out(graph: onnx.GraphProto) -> None:
    found = {name: node.name for name, node in makers_of(graph).items()}
    assert found == {"a": "pool", "b": "square", "c": "if", "y": "clip", "left": "split", "right": "split"}


def test_readers_of_lists_a_node_for_each_time_it_reads(graph: onnx.GraphProto) -> None:
    found = {name: [node.name for node in nodes] for name, nodes in readers_of(graph).items()}
    assert found == {
        "x": ["pool"],
        "a": ["square", "square"],
        "yes": ["if"],
        "b": ["clip"],
        "high": ["clip"],
        "y": ["split"],
    }


def test_attributes_of_gives_values_by_name(graph: onnx.GraphProto) -> None:
    pool, _, _, clip, split = graph.node
    assert attributes_of(pool) == {"kernel_shape": [2, 2], "auto_pad": b"VALID"}
    assert (attributes_of(clip), attributes_of(split)) == ({}, {"axis": 1})
