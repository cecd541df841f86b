"""If nodes that decide the same for every image stand aside for the branch they take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_fixtures import CHW, RNG, WEIGHT, flat, load_and_compare, node, operators, save

from pipeline.errors import DataError
from pipeline.onnx_models import classifier

SECOND = RNG.normal(size=(4, 4, 3, 3)).astype(np.float32)


def branch(name: str, *nodes: onnx.NodeProto, output: str) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def choice(condition: str, then: onnx.GraphProto, other: onnx.GraphProto, output: str) -> onnx.NodeProto:
    return helper.make_node("If", [condition], [output], f"If_{output}", then_branch=then, else_branch=other)


BRANCHES = (
    branch("then", node("Conv", "c w2", "t"), node("Relu", "t", "tr"), output="tr"),
    branch("else", node("Identity", "c", "e"), output="e"),
)
CONSTANTS = {"w": WEIGHT, "w2": SECOND, "yes": np.array(True), "no": np.array([False])}


@pytest.mark.parametrize(("condition", "convolutions"), [("yes", 2), ("no", 1)])
def test_load_takes_the_branch_of_a_constant_condition(tmp_path: Path, condition: str, convolutions: int) -> None:
    """Both branches read what lies outside them, and w2 is read by a branch alone."""
    nodes = flat(node("Conv", "x w", "c"), choice(condition, *BRANCHES, "a"))
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants=CONSTANTS))
    assert operators(model).count("Conv") == convolutions
    assert "If" not in operators(model)


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_load_takes_the_branch_that_a_shape_decides(tmp_path: Path, opset: int, batch: str | int) -> None:
    """Squeeze of a scripted network: an If on whether an axis is of size 1."""
    axes = {} if opset >= 13 else {"axes": [2, 3]}
    nodes = [
        *(node("Conv", "x w", "c"), node("GlobalAveragePool", "c", "g"), node("Shape", "g", "s")),
        *(node("Gather", "s two", "d", axis=0), node("Equal", "d one", "q")),
        choice(
            "q",
            branch("then", node("Squeeze", "g" if axes else "g axes", "t", **axes), output="t"),
            branch("else", node("Flatten", "g", "e"), output="e"),
            "y",
        ),
    ]
    constants = {"w": WEIGHT, "two": np.array(2), "one": np.array(1), "axes": np.array([2, 3])}
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, opset, constants, dims=(batch, *CHW)))
    assert "If" not in operators(model)


def test_load_takes_branches_within_branches(tmp_path: Path) -> None:
    inner = choice(
        "no", branch("a", node("Neg", "c", "p"), output="p"), branch("b", node("Abs", "c", "q"), output="q"), "i"
    )
    outer = choice("yes", branch("then", inner, output="i"), BRANCHES[1], "a")
    model = load_and_compare(save(tmp_path / "m.onnx", flat(node("Conv", "x w", "c"), outer), constants=CONSTANTS))
    assert operators(model) == ["Conv", "Abs", "Flatten"]


def test_load_takes_two_ifs_whose_branches_share_names(tmp_path: Path) -> None:
    again = (
        branch("then", node("Relu", "b", "t"), node("Neg", "t", "tr"), output="tr"),
        branch("else", node("Identity", "b", "e"), output="e"),
    )
    nodes = flat(node("Conv", "x w", "c"), choice("yes", *BRANCHES, "b"), choice("yes", *again, "a"))
    load_and_compare(save(tmp_path / "m.onnx", nodes, constants=CONSTANTS))


@pytest.mark.parametrize("read", ["x", "c"])
def test_load_refuses_a_condition_of_the_image(tmp_path: Path, read: str) -> None:
    nodes = flat(
        *(node("Conv", "x w", "c"), node("ReduceMax", read, "m", keepdims=0), node("Greater", "m low", "q")),
        choice("q", *BRANCHES, "a"),
    )
    path = save(tmp_path / "m.onnx", nodes, constants={**CONSTANTS, "low": np.float32(-100)})
    with pytest.raises(DataError) as caught:
        classifier.load(path, CHW)
    assert str(caught.value) == (
        f"{path}: node 'If_a' is an If, and its condition depends on the image or the batch; only networks without "
        "such nodes are taken: export by tracing (torch.onnx.export of the module, not of a scripted one), or without "
        "it"
    )


def test_load_refuses_a_loop(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", "more", "again"), node("Relu", "v", "u")],
        "body",
        [value("i", TensorProto.INT64, []), value("more", TensorProto.BOOL, []), value("v", TensorProto.FLOAT, None)],
        [value("again", TensorProto.BOOL, []), value("u", TensorProto.FLOAT, None)],
    )
    loop = helper.make_node("Loop", ["times", "yes", "c"], ["a"], "loop", body=body)
    nodes = flat(node("Conv", "x w", "c"), loop)
    path = save(tmp_path / "m.onnx", nodes, constants={**CONSTANTS, "times": np.array(2)})
    with pytest.raises(DataError, match="node 'loop' is a Loop, and it repeats a graph; only networks without such"):
        classifier.load(path, CHW)
