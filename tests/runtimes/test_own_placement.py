"""own_placement.py: ONNX Runtime gets another placement of quantizers than the file's, over the same weights."""

from __future__ import annotations

import base64
import dataclasses
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from small_graphs import Builder, Float32, images, ranges_seen, run_in

from pipeline.proof import agreement
from pipeline.quant.assemble import Parts, assemble
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.faster_form import faster_form
from pipeline.runtimes.ort import run_exact, save_onnx, save_ort
from pipeline.runtimes.own_placement import NODES, add_placement, take_placement


def gated() -> onnx.ModelProto:
    """Return convolutions behind a ReLU, a SiLU and a squeeze-and-excitation."""
    made = Builder(3)
    x = made.op("Relu", made.conv("x", 3, 8))
    x = made.conv(x, 8, 8)
    x = made.op("Mul", x, made.op("Sigmoid", x))
    x = made.conv(x, 8, 8)
    x = made.op("Mul", x, made.op("Sigmoid", made.op("GlobalAveragePool", x)))
    return made.model(made.gemm(made.pooled(made.op("Relu", made.conv(x, 8, 8))), 8, 5))


@pytest.fixture
def parts() -> Parts:
    return Parts(ranges=ranges_seen(gated(), images()), per_channel=True, gates_in_float=True)


def floats(model: onnx.ModelProto) -> set[str]:
    """Return the names of the convolutions whose output a quantizer does not read."""
    read = {name for node in model.graph.node if node.op_type == "QuantizeLinear" for name in node.input[:1]}
    return {node.name for node in model.graph.node if node.op_type == "Conv" and node.output[0] not in read}


def test_other_placement_is_the_model_of_its_own_when_it_was_stored_beside_one(parts: Parts) -> None:
    alone = assemble(gated(), parts).model
    other = assemble(gated(), dataclasses.replace(parts, gates_in_float=False)).model
    both = assemble(gated(), dataclasses.replace(parts, onnxruntime_gates=True)).model
    found = take_placement(both)
    assert found is not None
    onnx.checker.check_model(found)
    assert floats(found) == floats(other) < floats(alone)
    assert [node.op_type for node in found.graph.node] == [node.op_type for node in other.graph.node]
    assert (both.graph.node, both.graph.initializer) == (alone.graph.node, alone.graph.initializer)
    assert take_placement(alone) is None


def test_only_constants_that_differ_are_stored_again(parts: Parts) -> None:
    model = assemble(gated(), parts).model
    other = onnx.ModelProto()
    other.CopyFrom(model)
    first = other.graph.initializer[0]
    before = onnx.numpy_helper.to_array(first)
    first.CopyFrom(onnx.numpy_helper.from_array(before + 1, first.name))
    add_placement(model, other)
    found = take_placement(model)
    assert found is not None
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in found.graph.initializer}
    assert [name for name in values if name.endswith(".onnxruntime")] == [f"{first.name}.onnxruntime"]
    assert np.array_equal(values[f"{first.name}.onnxruntime"], before + 1)
    assert first.name not in values


def test_onnxruntime_answers_as_the_other_placement_and_openvino_as_the_file(parts: Parts, tmp_path: Path) -> None:
    alone = assemble(gated(), parts).model
    other = assemble(gated(), dataclasses.replace(parts, gates_in_float=False)).model
    both = assemble(gated(), dataclasses.replace(parts, onnxruntime_gates=True)).model
    assert any(each.key == NODES for each in both.metadata_props)
    answers: dict[tuple[str, Runtime], Float32] = {}
    for name, model in (("alone", alone), ("other", other), ("both", both)):
        onnx.save(model, path := tmp_path / f"{name}.onnx")
        answers |= {
            (name, runtime): run_in(runtime, path, images()) for runtime in Runtime if runtime is not Runtime.AUTO
        }
    for runtime, like, unlike in (
        (Runtime.ONNXRUNTIME, "other", "alone"),
        (Runtime.OPENVINO, "alone", "other"),
    ):
        assert np.array_equal(answers["both", runtime], answers[like, runtime])
        assert not np.array_equal(answers["both", runtime], answers[unlike, runtime])


@pytest.mark.parametrize(
    "held",
    ["no base64", base64.b64encode(b"not packed").decode(), base64.b64encode(zlib.compress(bytes(65 << 20))).decode()],
    ids=["text", "not packed", "too large"],
)
def test_metadata_that_hold_no_model_are_refused_and_the_file_runs_as_it_is(
    parts: Parts, tmp_path: Path, held: str
) -> None:
    model = assemble(gated(), parts).model
    model.metadata_props.add(key=NODES, value=held)
    with pytest.raises(ValueError, match=NODES):
        take_placement(model)
    onnx.save(model, path := tmp_path / "model.onnx")
    assert faster_form(path) is None


def test_files_for_other_programs_in_onnxruntime_hold_its_placement(parts: Parts, tmp_path: Path) -> None:
    both = assemble(gated(), dataclasses.replace(parts, onnxruntime_gates=True)).model
    other = assemble(gated(), dataclasses.replace(parts, gates_in_float=False)).model
    alone = assemble(gated(), parts).model
    for name, model in (("both", both), ("other", other), ("alone", alone)):
        onnx.save(model, tmp_path / f"{name}.onnx")
    save_onnx(tmp_path / "both.onnx", tmp_path / "written.onnx")
    save_onnx(tmp_path / "alone.onnx", tmp_path / "same.onnx")
    assert (tmp_path / "same.onnx").read_bytes() == (tmp_path / "alone.onnx").read_bytes()
    assert floats(onnx.load(tmp_path / "written.onnx")) == floats(other)
    answers = {name: run_exact(tmp_path / f"{name}.onnx", [images()], 1) for name in ("written", "other", "alone")}
    assert np.array_equal(answers["written"], answers["other"])
    assert not np.array_equal(answers["written"], answers["alone"])
    for name in ("both", "other", "alone"):
        save_ort(tmp_path / f"{name}.onnx", tmp_path / f"{name}.ort")
        session = onnxruntime.InferenceSession(
            (tmp_path / f"{name}.ort").read_bytes(), providers=["CPUExecutionProvider"]
        )
        answers[f"ort of {name}"] = session.run(None, {session.get_inputs()[0].name: images()})[0]
    assert np.array_equal(answers["ort of both"], answers["ort of other"])
    assert not np.array_equal(answers["ort of both"], answers["ort of alone"])


def test_exact_arithmetic_of_onnxruntime_is_that_of_its_placement(parts: Parts, tmp_path: Path) -> None:
    made = {
        "both": dataclasses.replace(parts, onnxruntime_gates=True),
        "other": dataclasses.replace(parts, gates_in_float=False),
        "alone": parts,
    }
    found = {}
    for name, each in made.items():
        onnx.save(assemble(gated(), each).model, path := tmp_path / f"{name}.onnx")
        exact = agreement.run_exact(path, [images()])
        for runtime in (Runtime.OPENVINO, Runtime.ONNXRUNTIME):
            outputs = agreement.exact_of(runtime, path, [images()], exact).outputs
            assert outputs is not None
            found[name, runtime] = outputs
    assert np.array_equal(found["both", Runtime.OPENVINO], found["alone", Runtime.OPENVINO])
    assert np.array_equal(found["both", Runtime.ONNXRUNTIME], found["other", Runtime.ONNXRUNTIME])
    assert not np.array_equal(found["both", Runtime.ONNXRUNTIME], found["alone", Runtime.ONNXRUNTIME])
