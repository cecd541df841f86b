"""sessions.py: models in memory in ONNX Runtime, as they stand, optimized, or written back folded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.runtimes import sessions
from pipeline.runtimes.sessions import FILE_ERRORS, RUNTIME_ERRORS, open_session, write_folded

ROW = np.array([[1.0, -2.0, 0.5]], np.float32)


@pytest.fixture
def model() -> onnx.ModelProto:
    """y = x * (2 + 3), the sum computed in the graph."""
    constants = [numpy_helper.from_array(np.float32(value), name) for name, value in (("two", 2), ("three", 3))]
    nodes = [helper.make_node("Add", ["two", "three"], ["five"], "add"), helper.make_node("Mul", ["x", "five"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("optimized", [True, False])
@pytest.mark.parametrize("threads", [None, 1])
def test_open_session_computes_the_model(model: onnx.ModelProto, optimized: bool, threads: int | None) -> None:
    session = open_session(model.SerializeToString(), optimized=optimized, threads=threads)
    np.testing.assert_array_equal(session.run(None, {"x": ROW})[0], [[5.0, -10.0, 2.5]])


def test_open_session_reads_a_file(model: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "model.onnx")
    session = open_session(str(tmp_path / "model.onnx"), optimized=False)
    np.testing.assert_array_equal(session.run(["y"], {"x": 2 * ROW})[0], [[10.0, -20.0, 5.0]])


def test_open_session_raises_the_declared_errors(model: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(FILE_ERRORS):
        open_session(str(tmp_path / "absent.onnx"))
    with pytest.raises(FILE_ERRORS):
        open_session(b"no model")
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(RUNTIME_ERRORS):
        open_session(model.SerializeToString())


def test_write_folded_computes_what_depends_on_constants_alone(model: onnx.ModelProto, tmp_path: Path) -> None:
    write_folded(model.SerializeToString(), tmp_path / "folded.onnx")
    folded = onnx.load(tmp_path / "folded.onnx")
    assert [node.op_type for node in folded.graph.node] == ["Mul"]
    assert {float(numpy_helper.to_array(tensor)) for tensor in folded.graph.initializer} == {5.0}


def test_write_folded_leaves_out_the_named_optimizers(model: onnx.ModelProto, tmp_path: Path) -> None:
    write_folded(model.SerializeToString(), tmp_path / "kept.onnx", ["ConstantFolding"])
    assert [node.op_type for node in onnx.load(tmp_path / "kept.onnx").graph.node] == ["Add", "Mul"]


@pytest.mark.parametrize("large", [1, 4, 1 << 20])  # bytes: both constants, or none, are passed apart
def test_open_session_computes_the_model_when_its_tensors_are_passed_apart(
    model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, large: int
) -> None:
    before = model.SerializeToString(deterministic=True)
    monkeypatch.setattr(sessions, "_LARGE", large)
    assert list(sessions.serialize(model)[1]) == ([] if large > 100 else ["two", "three"])
    np.testing.assert_array_equal(open_session(model).run(None, {"x": ROW})[0], [[5.0, -10.0, 2.5]])
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.slow
def test_serialize_leaves_large_tensors_out_of_the_bytes(model: onnx.ModelProto) -> None:
    values = np.arange(17 << 20, dtype=np.float32)  # 68 MiB
    model.graph.initializer.append(numpy_helper.from_array(values, "table"))
    content, tensors = sessions.serialize(model, ["five", "y"])
    assert len(content) < 1000
    np.testing.assert_array_equal(tensors["table"].numpy(), values)
    assert [value.name for value in onnx.load_model_from_string(content).graph.output] == ["y", "five"]
