"""token_means.py: means over tokens get four axes, to the same values, in both runtimes between quantizers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_graphs import SIDE, Builder, images, kinds_of, ranges_seen, run_exact, run_in, sqnr_db

from pipeline.onnx_models import classifier, token_means
from pipeline.quant import qdq
from pipeline.runtimes.base import Runtime


def network(opset: int, kind: str = "ReduceMean", axes: tuple[int, ...] = (1,), keep: int = 0) -> onnx.ModelProto:
    """A layer of tokens, as in networks of MLPs."""
    made = Builder()
    x = made.op("Reshape", made.conv("x", 3, 8), made.constant([0, 8, -1], np.int64))
    x = made.op("MatMul", made.op("Transpose", x, perm=[0, 2, 1]), made.constant(made.normal(8, 8)))
    x = made.op("Relu", made.op("Add", x, made.constant(made.normal(8))))
    if opset < 18 and kind != "ReduceSum":
        x = made.op(kind, x, axes=list(axes), keepdims=keep)
    else:
        x = made.op(kind, x, made.constant(axes, np.int64), keepdims=keep)
    return made.model(made.gemm(made.op("Flatten", x) if keep else x, 8, 5), opset=opset)


@pytest.mark.parametrize("opset", [17, 18, 21])
@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceSum"])
@pytest.mark.parametrize("axis", [1, -2])
@pytest.mark.parametrize("keep", [0, 1])
def test_give_four_axes_gives_the_same_values(opset: int, kind: str, axis: int, keep: int) -> None:
    model = network(opset, kind, (axis,), keep)
    expected = run_exact(model, images())
    assert token_means.give_four_axes(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert kinds_of(model, "Unsqueeze") != []
    np.testing.assert_allclose(run_exact(model, images()), expected, rtol=1e-5, atol=1e-6)


def test_give_four_axes_leaves_means_of_a_norm_and_over_other_axes() -> None:
    made = Builder()
    x = made.op("Reshape", made.conv("x", 3, 8), made.constant([0, 8, -1], np.int64))
    places = made.op("ReduceMean", x, axes=[2], keepdims=0)
    tokens = made.op("LayerNormalization", made.op("Transpose", x, perm=[0, 2, 1]), made.constant(np.ones(8)), axis=-1)
    x = made.op("Add", places, made.op("ReduceMean", tokens, axes=[1], keepdims=0))
    model = made.model(made.gemm(x, 8, 5))
    before = model.SerializeToString()
    assert token_means.give_four_axes(model) == 0
    assert model.SerializeToString() == before


@pytest.mark.parametrize("runtime", list(Runtime))
def test_load_lets_a_mean_over_tokens_be_the_same_in_every_runtime(runtime: Runtime, tmp_path: Path) -> None:
    """OpenVINO 2026.4.1 was right for the first image of a batch alone: 1 dB."""
    pytest.importorskip(runtime.value, reason=f"needs {runtime.value}")
    onnx.save(network(17), tmp_path / "float.onnx")
    model = classifier.load(tmp_path / "float.onnx", (3, SIDE, SIDE))
    means = [node.output[0] for node in model.graph.node if node.op_type == "ReduceMean"]  # in float32, as builds do
    int8 = qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True, float_activations=means)
    onnx.save(int8, tmp_path / "int8.onnx")
    assert sqnr_db(run_exact(int8, images()), run_in(runtime, tmp_path / "int8.onnx", images())) > 35
