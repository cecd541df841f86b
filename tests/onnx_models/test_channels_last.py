"""channels_last.py: a mean over a map with channels last is taken of the map itself, to the same values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_graphs import Builder, images, kinds_of, ranges_seen, run_exact

from pipeline.onnx_models import channels_last, classifier
from pipeline.quant import qdq
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.executed import count_int8

LAST = [0, 2, 3, 1]


def network(
    opset: int,
    between: tuple[str, ...] = ("Relu",),
    perm: list[int] = LAST,
    axes: tuple[int, ...] = (1, 2),
    keep: int = 0,
) -> onnx.ModelProto:
    """As jax2onnx 0.17.1 writes jnp.mean(x, axis=(1, 2)) of flax's convolutions, once Transposes are moved down."""
    made = Builder()
    x = made.op("Transpose", made.conv("x", 3, 8), perm=perm)
    for kind in between:
        x = made.op(kind, x)
    if opset < 18:
        x = made.op("ReduceMean", x, axes=list(axes), keepdims=keep)
    else:
        x = made.op("ReduceMean", x, made.constant(axes, np.int64), keepdims=keep)
    return made.model(made.gemm(made.op("Flatten", x) if keep else x, 8, 5), opset=opset)


@pytest.mark.parametrize("opset", [17, 18, 21])
@pytest.mark.parametrize("between", [(), ("Relu",), ("Sigmoid", "LeakyRelu")])
def test_pool_channels_first_gives_the_same_values(opset: int, between: tuple[str, ...]) -> None:
    model = network(opset, between)
    expected = run_exact(model, images())
    assert channels_last.pool_channels_first(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert kinds_of(model, "Transpose") == []
    np.testing.assert_allclose(run_exact(model, images()), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        network(18, keep=1),  # [N, 1, 1, C] would become [N, C, 1, 1]
        network(18, axes=(1,), keep=1),
        network(18, perm=[0, 1, 2, 3]),
        network(18, between=("Softmax",)),  # along the last axis
    ],
    ids=["keeps axes", "one axis", "no change of layout", "not elementwise"],
)
def test_pool_channels_first_changes_nothing_else(model: onnx.ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    assert channels_last.pool_channels_first(model) == 0
    assert model.SerializeToString(deterministic=True) == before


def test_pool_channels_first_leaves_a_function_that_others_read() -> None:
    made = Builder()
    x = made.op("Relu", made.op("Transpose", made.conv("x", 3, 8), perm=LAST))
    means = [made.op("ReduceMean", x, axes=[1, 2], keepdims=0), made.op("ReduceMax", x, axes=[1, 2], keepdims=0)]
    assert channels_last.pool_channels_first(made.model(made.gemm(made.op("Add", *means), 8, 5), opset=17)) == 0


def test_load_lets_a_network_of_jax_be_computed_in_int8(tmp_path: Path) -> None:
    given = network(21)
    onnx.save(given, tmp_path / "given.onnx")
    model = classifier.load(tmp_path / "given.onnx", (3, 12, 12))
    np.testing.assert_allclose(run_exact(model, images()), run_exact(given, images()), rtol=1e-5, atol=1e-6)
    onnx.save(qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True), tmp_path / "int8.onnx")
    found = count_int8(Runtime.ONNXRUNTIME, tmp_path / "int8.onnx")
    assert (found["weighted"], found["int8"], found["other_float"]) == (2, 2, {})
