"""pooling.py: means and maxima over height and width as pools, to the same values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from small_graphs import SIDE, Builder, images, kinds_of, ranges_seen, run_exact, run_in, sqnr_db

from pipeline.onnx_models import classifier, pooling
from pipeline.quant import qdq
from pipeline.runtimes import float_form
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.executed import count_int8
from pipeline.runtimes.opening import installed_runtimes


def mean(made: Builder, x: str, axes: list[int], opset: int, keepdims: int) -> str:
    if opset < 18:
        return made.op("ReduceMean", x, axes=axes, keepdims=keepdims)
    return made.op("ReduceMean", x, made.constant(axes, np.int64), keepdims=keepdims)


def network(axes: list[list[int]], opset: int, keepdims: int) -> onnx.ModelProto:
    made = Builder()
    x = made.op("Relu", made.conv("x", 3, 8))
    for each in axes:
        x = mean(made, x, each, opset, keepdims)
    return made.model(made.gemm(made.op("Flatten", x), 8, 5), opset=opset)


@pytest.mark.parametrize("opset", [17, 18, 21])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[[2, 3]], [[-1, -2]], [[3, -2]], [[3], [2]], [[-2], [-1]], [[2], [-1]]])
def test_use_global_pooling_gives_the_same_values_when_a_mean_covers_the_map(
    axes: list[list[int]], opset: int, keepdims: int
) -> None:
    model = network(axes, opset, keepdims)
    expected = run_exact(model, images())
    assert pooling.use_global_pooling(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert kinds_of(model, "ReduceMean") == []
    assert len(kinds_of(model, "GlobalAveragePool")) == 1
    np.testing.assert_allclose(run_exact(model, images()), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axes", [[[1]], [[1, 2, 3]], [[3]], [[2]], [[1], [3]], [[0, 2, 3]]])
def test_use_global_pooling_changes_nothing_when_a_mean_covers_something_else(axes: list[list[int]]) -> None:
    made = Builder()
    x = made.op("Relu", made.conv("x", 3, 8))
    for each in axes:
        x = mean(made, x, each, 17, 1)
    model = made.model(x, classes=None)
    before = model.SerializeToString(deterministic=True)
    assert pooling.use_global_pooling(model) == 0
    assert model.SerializeToString(deterministic=True) == before


def test_use_global_pooling_changes_nothing_when_something_else_reads_between_two_means() -> None:
    made = Builder()
    rows = mean(made, made.op("Relu", made.conv("x", 3, 8)), [3], 17, 1)
    both = made.op("Add", mean(made, rows, [2], 17, 1), made.op("ReduceMax", rows, axes=[2]))
    model = made.model(made.gemm(made.op("Flatten", both), 8, 5))
    assert pooling.use_global_pooling(model) == 0


def test_use_global_pooling_serves_every_reader_of_the_mean() -> None:
    made = Builder()
    x = made.op("Relu", made.conv("x", 3, 8))
    gate = made.op("Sigmoid", mean(made, x, [2, 3], 17, 1))  # squeeze and excite
    model = made.model(made.gemm(mean(made, made.op("Mul", x, gate), [2, 3], 17, 0), 8, 5))
    expected = run_exact(model, images())
    assert pooling.use_global_pooling(model) == 2
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run_exact(model, images()), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("axes", "opset"), [([[-1, -2]], 18), ([[2, 3]], 17), ([[3], [2]], 18)])
def test_load_lets_the_pooling_be_computed_in_int8(axes: list[list[int]], opset: int, tmp_path: Path) -> None:
    given = network(axes, opset, 0)
    onnx.save(given, tmp_path / "given.onnx")
    model = classifier.load(tmp_path / "given.onnx", (3, 12, 12))
    np.testing.assert_allclose(run_exact(model, images()), run_exact(given, images()), rtol=1e-5, atol=1e-6)
    onnx.save(qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True), tmp_path / "int8.onnx")
    found = count_int8(Runtime.ONNXRUNTIME, tmp_path / "int8.onnx")
    assert (found["weighted"], found["int8"], found["other_float"]) == (2, 2, {})


@pytest.mark.parametrize("opset", [11, 17, 19])
@pytest.mark.parametrize(("kernel", "stride", "pad"), [(3, 2, 1), (2, 2, 1), (5, 3, 2)])
def test_pad_before_means_gives_the_values_of_torch(opset: int, kernel: int, stride: int, pad: int) -> None:
    made = Builder()
    attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
    model = made.model(made.op("AveragePool", "x", **attributes, ceil_mode=1, count_include_pad=1), None, opset)
    assert pooling.pad_before_means(model) == 1
    onnx.checker.check_model(model, full_check=True)
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(images()), kernel, stride, pad, ceil_mode=True).numpy()
    np.testing.assert_allclose(run_exact(model, images()), expected, rtol=1e-5, atol=1e-6)


DILATED = [
    {"kernel_shape": [3, 3], "dilations": [2, 2]},
    {"kernel_shape": [2, 3], "dilations": [3, 1], "strides": [2, 1], "pads": [1, 0, 0, 1]},
    {"kernel_shape": [3, 3], "dilations": [2, 2], "pads": [2, 2, 2, 2], "strides": [3, 3]},
    {"kernel_shape": [3, 3], "dilations": [2, 2], "pads": [2, 2, 2, 2], "count_include_pad": 1},
]


@pytest.mark.parametrize("attributes", DILATED, ids=str)
def test_load_makes_a_convolution_of_a_mean_with_gaps_which_every_runtime_opens_in_int8(
    attributes: dict[str, Any], tmp_path: Path
) -> None:
    made = Builder()
    x = made.op("AveragePool", made.op("Relu", made.conv("x", 3, 8)), **attributes)
    given = made.model(made.gemm(made.pooled(made.op("Relu", made.conv(x, 8, 8))), 8, 5), opset=19)
    onnx.save(given, tmp_path / "given.onnx")
    model = classifier.load(tmp_path / "given.onnx", (3, SIDE, SIDE))
    assert kinds_of(model, "AveragePool") == []
    expected = run_exact(given, images())
    np.testing.assert_allclose(run_exact(model, images()), expected, rtol=1e-5, atol=1e-6)
    onnx.save(qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True), tmp_path / "int8.onnx")
    for runtime in installed_runtimes():
        assert sqnr_db(expected, run_in(runtime, tmp_path / "int8.onnx", images())) > 25


def test_convolve_dilated_means_leaves_means_without_gaps_and_of_unknown_places() -> None:
    made = Builder()
    plain = made.op("AveragePool", "x", kernel_shape=[3, 3], dilations=[1, 1])
    model = made.model(made.op("AveragePool", plain, kernel_shape=[2, 2], dilations=[2, 2], ceil_mode=1), None, 19)
    assert pooling.convolve_dilated_means(model) == 0


def test_convolve_dilated_means_leaves_a_window_of_padding_alone() -> None:
    made = Builder()
    point = made.op("GlobalAveragePool", made.conv("x", 3, 8))
    whole = made.op("AveragePool", point, kernel_shape=[2, 2], dilations=[3, 3], pads=[2, 2, 2, 2])
    assert pooling.convolve_dilated_means(made.model(whole, None, 19)) == 0


@pytest.mark.parametrize(("kind", "more"), [("GlobalMaxPool", {}), *(("ReduceMax", {"keepdims": k}) for k in (0, 1))])
def test_use_pool_over_map_gives_the_same_values(kind: str, more: dict[str, int]) -> None:
    made = Builder()
    axes = {"axes": [-1, 2]} if kind == "ReduceMax" else {}
    x = made.op(kind, made.op("Relu", made.conv("x", 3, 8)), **axes, **more)
    model = made.model(made.gemm(made.op("Flatten", x), 8, 5))
    expected = run_exact(model, images())
    assert pooling.use_pool_over_map(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert (len(kinds_of(model, "MaxPool")), len(kinds_of(model, kind))) == (1, 0)
    np.testing.assert_array_equal(run_exact(model, images()), expected)


@pytest.mark.parametrize("axes", [[1], [2], [1, 2, 3], None])
def test_use_pool_over_map_changes_nothing_when_a_maximum_is_over_something_else(axes: list[int] | None) -> None:
    made = Builder()
    x = made.op("ReduceMax", made.conv("x", 3, 8), **({} if axes is None else {"axes": axes}))
    assert pooling.use_pool_over_map(made.model(x, classes=None)) == 0


@pytest.mark.parametrize("kind", ["GlobalMaxPool", "ReduceMax"])
@pytest.mark.parametrize("runtime", list(Runtime))
def test_use_pool_over_map_lets_a_gate_of_maxima_be_the_same_in_every_runtime(
    runtime: Runtime, kind: str, tmp_path: Path
) -> None:
    """As in CBAM, without a quantizer before the maximum: OpenVINO was at 28 dB then."""
    pytest.importorskip(runtime.value, reason=f"needs {runtime.value}")
    made = Builder(2)
    x = made.op("Relu", made.conv("x", 3, 8))
    largest = made.op(kind, x, **({"axes": [2, 3]} if kind == "ReduceMax" else {}))
    scaled = made.op("Mul", x, made.op("Sigmoid", made.conv(largest, 8, 8, 1)))
    model = made.model(made.gemm(made.pooled(made.op("Relu", made.conv(scaled, 8, 8))), 8, 5))
    assert pooling.use_pool_over_map(model) == 1
    int8 = qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True, gates_in_float=True)
    onnx.save(int8, tmp_path / "int8.onnx")
    if runtime is Runtime.ONNXRUNTIME:
        float_form.use_float_form(int8)  # as it is opened there
    assert sqnr_db(run_exact(int8, images()), run_in(runtime, tmp_path / "int8.onnx", images())) > 60


@pytest.mark.parametrize("kind", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("keeps", [0, 1])
@pytest.mark.parametrize("is_flat", [False, True])
def test_use_pool_over_channels_gives_the_same_values(kind: str, keeps: int, is_flat: bool) -> None:
    made = Builder()
    x = made.conv("x", 3, 8)
    x = made.op("Reshape", x, made.constant([0, 8, -1], np.int64)) if is_flat else x
    x = made.op("Flatten", made.op(kind, x, axes=[1 if keeps else 1 - (3 if is_flat else 4)], keepdims=keeps))
    model = made.model(made.gemm(x, SIDE**2, 5))
    expected = run_exact(model, images())
    assert pooling.use_pool_over_channels(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert (len(kinds_of(model, "MaxPool")), len(kinds_of(model, kind))) == (1, 0)
    np.testing.assert_array_equal(run_exact(model, images()), expected)
    np.testing.assert_array_equal(run_exact(model, images()[:3]), expected[:3])


@pytest.mark.parametrize("axes", [[2], [3], [1, 2], [0, 1], None])
def test_use_pool_over_channels_changes_nothing_when_a_maximum_is_over_something_else(axes: list[int] | None) -> None:
    made = Builder()
    x = made.op("ReduceMax", made.conv("x", 3, 8), **({} if axes is None else {"axes": axes}))
    assert pooling.use_pool_over_channels(made.model(x, classes=None)) == 0


@pytest.mark.parametrize("kind", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("runtime", list(Runtime))
def test_load_lets_spatial_attention_be_the_same_in_every_runtime(runtime: Runtime, kind: str, tmp_path: Path) -> None:
    """As in CBAM: maximum and mean of the channels, joined, and a convolution. OpenVINO was at 20 dB and less."""
    pytest.importorskip(runtime.value, reason=f"needs {runtime.value}")
    made = Builder(2)
    x = made.op("Relu", made.conv("x", 3, 8))
    joined = made.op("Concat", made.op("ReduceMean", x, axes=[1]), made.op(kind, x, axes=[1]), axis=1)
    scaled = made.op("Mul", x, made.op("Sigmoid", made.conv(joined, 2, 1, 3)))
    model = made.model(made.gemm(made.pooled(made.op("Relu", made.conv(scaled, 8, 8))), 8, 5))
    onnx.save(model, tmp_path / "float.onnx")
    loaded = classifier.load(tmp_path / "float.onnx", (3, SIDE, SIDE))
    int8 = qdq.insert_qdq(loaded, ranges_seen(loaded, images()), per_channel=True)
    onnx.save(int8, tmp_path / "int8.onnx")
    exact = run_exact(int8, images())
    assert sqnr_db(exact, run_in(runtime, tmp_path / "int8.onnx", images())) > 35
    assert sqnr_db(run_exact(model, images()), exact) > 25
