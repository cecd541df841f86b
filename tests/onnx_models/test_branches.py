"""If nodes that decide the same for every image stand aside for the branch they take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_fixtures import CHW, IMAGES, RNG, WEIGHT, flat, load_and_compare, node, operators, save

from pipeline.errors import DataError
from pipeline.onnx_models import classifier
from pipeline.onnx_models.raw_file import RawFile

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
        f"{path}: node 'If_a' is an If, and its condition depends on the image; only networks without "
        "such nodes are taken: export by tracing (torch.onnx.export of the module, not of a scripted one), or without "
        "it"
    )


def of_batch(kind: str, bound: int) -> list[onnx.NodeProto]:
    """Return nodes that compare the number of images with a number."""
    return [node("Shape", "x", "s"), node("Gather", "s zero", "n", axis=0), node(kind, f"n {bound}", "q")]


@pytest.mark.parametrize(("kind", "bound"), [("Equal", 1), ("Less", 2), ("Greater", 2)])
def test_load_takes_the_branch_for_one_image_when_the_batch_decides(tmp_path: Path, kind: str, bound: int) -> None:
    """Both branches compute the same, so that the batch is free."""
    other = branch("else", node("Conv", "c eye", "e"), output="e")
    nodes = flat(node("Conv", "x w", "c"), *of_batch(kind, bound), choice("q", BRANCHES[1], other, "a"))
    constants = {"w": WEIGHT, "zero": np.array(0), str(bound): np.array(bound)}
    constants["eye"] = np.eye(4, dtype=np.float32)[..., None, None]
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants))
    assert "If" not in operators(model)
    assert not model.graph.input[0].type.tensor_type.shape.dim[0].dim_value


def test_load_keeps_one_image_when_a_branch_for_one_image_takes_no_more(tmp_path: Path) -> None:
    one = branch("then", node("Gather", "f first", "t", axis=0), output="t")
    nodes = [
        *(node("Conv", "x w", "c"), node("Flatten", "c", "f"), *of_batch("Equal", 1)),
        choice("q", one, branch("else", node("Identity", "f", "e"), output="e"), "y"),
    ]
    constants = {"w": WEIGHT, "zero": np.array(0), "1": np.array(1), "first": np.array([0])}
    model = classifier.load(save(tmp_path / "m.onnx", nodes, constants=constants), CHW)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    expected = RawFile(tmp_path / "m.onnx", None).answers(IMAGES)
    found = np.concatenate([classifier.run(model, image[None]) for image in IMAGES])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def value(name: str, kind: int = TensorProto.FLOAT, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [] if kind != TensorProto.FLOAT else shape)


def loop(*nodes: onnx.NodeProto, stacks: bool = False) -> onnx.NodeProto:
    """Return a Loop over a tensor v, which its body makes u of."""
    made = helper.make_graph(
        list(nodes),
        "body",
        [value("i", TensorProto.INT64), value("more", TensorProto.BOOL), value("v")],
        [value("again", TensorProto.BOOL), value("u"), *([value("step")] if stacks else [])],
    )
    outputs = ["last", "steps"] if stacks else ["a"]
    return helper.make_node("Loop", ["times", "yes", "c"], outputs, "loop", body=made)


ROUNDS = {**CONSTANTS, "times": np.array(3), "w4": RNG.normal(0, 0.1, (3, 4, 4, 1, 1)).astype(np.float32)}
GOES_ON = node("Identity", "more", "again")


@pytest.mark.parametrize("condition", ["yes", ""])
@pytest.mark.parametrize("again", [GOES_ON, node("Identity", "yes", "again")])
def test_load_writes_out_a_loop(tmp_path: Path, again: onnx.NodeProto, condition: str) -> None:
    repeated = loop(again, node("Conv", "v w2", "s"), node("Tanh", "s", "u"))
    repeated.input[1] = condition
    constants = {**ROUNDS, "w2": SECOND[..., 1:2, 1:2]}
    nodes = flat(node("Conv", "x w", "c"), repeated)
    assert operators(load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants))).count("Conv") == 4


def test_load_writes_out_a_loop_that_counts_and_puts_its_rounds_together(tmp_path: Path) -> None:
    weights = node("Gather", "w4 i", "wi", axis=0)
    repeated = loop(
        *(GOES_ON, weights, node("Conv", "v wi", "s"), node("Add", "s v", "u"), node("Relu", "u", "step")), stacks=True
    )
    ending = (node("ReduceMean", "steps", "m", axes=[0], keepdims=0), node("Add", "last m", "a"))
    nodes = flat(node("Conv", "x w", "c"), repeated, *ending)
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants=ROUNDS))
    assert "Loop" not in operators(model)


def test_load_writes_out_a_loop_whose_rounds_a_shape_gives(tmp_path: Path) -> None:
    counted = (node("Shape", "c", "shape"), node("Gather", "shape two", "times", axis=0))
    nodes = flat(node("Conv", "x w", "c"), *counted, loop(GOES_ON, node("Sin", "v", "u")))
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants={**CONSTANTS, "two": np.array(2)}))
    assert operators(model).count("Sin") == CHW[1] - 2


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("axis", [2, 3])
def test_load_writes_out_a_scan(tmp_path: Path, axis: int, reverse: int) -> None:
    """A running sum over rows or columns of a map, from either end."""
    made = helper.make_graph(
        [node("Mul", "h half", "g"), node("Add", "g row", "n"), node("Identity", "n", "out")],
        "body",
        [value("h"), value("row")],
        [value("n"), value("out")],
    )
    scan = helper.make_node("Scan", ["zero", "c"], ["last", "a"], "scan", body=made, num_scan_inputs=1)
    for name, number in (("axes", axis), ("directions", reverse)):
        for side in ("input", "output"):
            scan.attribute.append(helper.make_attribute(f"scan_{side}_{name}", [number]))
    start = (node("ReduceSum", "c axis", "r", keepdims=0), node("Mul", "r none", "zero"))
    nodes = flat(node("Conv", "x w", "c"), *start, scan)
    constants = {**CONSTANTS, "half": np.float32(0.5), "axis": np.array([axis]), "none": np.float32(0)}
    assert "Scan" not in operators(load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants)))


@pytest.mark.parametrize("times", ["times", ""])
@pytest.mark.parametrize("bound", [0, 1, 5])
def test_load_writes_out_a_loop_that_a_counter_ends(tmp_path: Path, times: str, bound: int) -> None:
    """`while i < bound` of a scripted network, which hands on the image's values too; `times` is 3."""
    body = helper.make_graph(
        [node("Tanh", "v", "u"), node("Add", "k unit", "next"), node("Less", "next bound", "again")],
        "body",
        [value("i", TensorProto.INT64), value("more", TensorProto.BOOL), value("v"), value("k", TensorProto.INT64)],
        [value("again", TensorProto.BOOL), value("u"), value("next", TensorProto.INT64)],
    )
    made = helper.make_node("Loop", [times, "yes", "c", "zero"], ["a", "end"], "loop", body=body)
    constants = {**ROUNDS, "zero": np.array(0), "unit": np.array(1), "bound": np.array(bound)}
    path = save(tmp_path / "m.onnx", flat(node("Conv", "x w", "c"), made), constants=constants)
    found = operators(load_and_compare(path))
    assert found.count("Tanh") == min(max(bound, 1), 3 if times else 5)
    assert "Loop" not in found


def test_load_refuses_a_loop_that_never_ends(tmp_path: Path) -> None:
    body = helper.make_graph(
        [node("Tanh", "v", "u"), node("Add", "k unit", "next"), node("Less", "zero next", "again")],
        "body",
        [value("i", TensorProto.INT64), value("more", TensorProto.BOOL), value("v"), value("k", TensorProto.INT64)],
        [value("again", TensorProto.BOOL), value("u"), value("next", TensorProto.INT64)],
    )
    made = helper.make_node("Loop", ["", "yes", "c", "zero"], ["a", "end"], "loop", body=body)
    constants = {**CONSTANTS, "zero": np.array(0), "unit": np.array(1)}
    path = save(tmp_path / "m.onnx", flat(node("Conv", "x w", "c"), made), constants=constants)
    with pytest.raises(DataError, match="node 'loop' is a Loop, and how often it repeats a graph"):
        classifier.load(path, CHW)


@pytest.mark.parametrize("times", [3, 101])
def test_load_refuses_a_loop_whose_rounds_depend_on_the_image_or_are_many(tmp_path: Path, times: int) -> None:
    is_large = (node("ReduceMax", "v", "m", keepdims=0), node("Greater", "m low", "again"))
    repeated = loop(*((GOES_ON,) if times > 3 else is_large), node("Relu", "v", "u"))
    constants = {**CONSTANTS, "times": np.array(times), "low": np.float32(0.1)}
    path = save(tmp_path / "m.onnx", flat(node("Conv", "x w", "c"), repeated), constants=constants)
    with pytest.raises(DataError, match="node 'loop' is a Loop, and how often it repeats a graph depends on the image"):
        classifier.load(path, CHW)
