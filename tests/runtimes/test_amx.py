"""amx.py: weights in the form that ONNX Runtime runs with AMX give the same answers, on any CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from run_fixtures import TinyWorkspace

from pipeline.host.hardware import instruction_sets
from pipeline.runtimes import faster_form, ort
from pipeline.runtimes.amx import shift_weights
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import open_backend, place


def answers(model: onnx.ModelProto) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).normal(0, 1, (8, 3, 32, 32)).astype(np.float32)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


def test_shifted_weights_give_the_same_answers_to_the_bit(tiny: TinyWorkspace) -> None:
    model = onnx.load(tiny.package.model)
    expected = answers(model)
    assert shift_weights(model, least_inputs=1) == 2
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(answers(model), expected)
    assert shift_weights(model, least_inputs=1) == 0  # zero points are not 0 any more


def test_weights_stay_that_would_gain_nothing_or_do_not_fit(tiny: TinyWorkspace) -> None:
    model = onnx.load(tiny.package.model)
    unchanged = model.SerializeToString()
    assert shift_weights(model) == 0  # all are small
    assert model.SerializeToString() == unchanged
    makers = {output: node for node in model.graph.node for output in node.output}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    stored = [tensors[makers[node.input[1]].input[0]] for node in model.graph.node if node.op_type == "Conv"]
    weights = numpy_helper.to_array(stored[0]).copy()
    weights[0, 0, 0, 0] = -128
    stored[0].CopyFrom(numpy_helper.from_array(weights, stored[0].name))
    assert shift_weights(model, least_inputs=1) == 1  # the other


def test_onnx_runtime_loads_packages_so_on_cpus_with_amx_only(
    tiny: TinyWorkspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = tiny.package.model
    assert ort._source(model) == str(model) or "AMX int8" in instruction_sets()
    monkeypatch.setattr(faster_form, "instruction_sets", lambda: ["AVX-512 VNNI", "AMX int8"])
    assert isinstance(ort._source(model), bytes)
    with open_backend(Runtime.ONNXRUNTIME, model, batch=1, placement=place(1, 1)) as backend:
        assert backend.infer(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 6)
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    assert ort._source(tmp_path / "broken.onnx") == str(tmp_path / "broken.onnx")
    assert ort._source(tmp_path / "gone.onnx") == str(tmp_path / "gone.onnx")
