"""folding.py: what ONNX Runtime folds, without what it would keep as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_graphs import SIDE, Builder, images, run_exact

from pipeline.errors import DataError
from pipeline.host.hardware import peak_memory_mib, release_memory, reset_peak_memory
from pipeline.onnx_models import classifier
from pipeline.onnx_models.folding import fold
from pipeline.onnx_models.graphs import check_model
from pipeline.runtimes.sessions import tensor_bytes, write_folded

WIDE = 1 << 13  # of 8 columns, and more: weights of a MiB


def with_wide_layer(*, norm: bool = False, squared: bool = False) -> onnx.ModelProto:
    made = Builder()
    x = made.gemm(made.pooled(made.op("Relu", made.conv("x", 3, 40))), 40, WIDE)
    if norm:
        ones = made.constant(np.ones(WIDE))
        x = made.op("BatchNormalization", x, ones, made.constant(made.normal(WIDE)), ones, ones)
    x = made.op("Relu", x)
    if squared:  # something else reads the weights
        x = made.op("MatMul", x, made.op("Mul", "c2", "c2"))
        return made.model(made.gemm(x, 40, 5))
    return made.model(made.gemm(x, WIDE, 5))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("squared", [False, True])
def test_fold_computes_and_folds_the_same_as_with_all_weights(norm: bool, squared: bool, tmp_path: Path) -> None:
    model = with_wide_layer(norm=norm, squared=squared)
    expected = run_exact(model, images())
    write_folded(model.SerializeToString(), tmp_path / "whole.onnx")
    folded = fold(model, Path("m.onnx"))
    onnx.checker.check_model(folded, full_check=True)
    assert [value.name for value in folded.graph.input] == ["x"]
    whole = onnx.load(tmp_path / "whole.onnx")
    assert [node.op_type for node in folded.graph.node] == [node.op_type for node in whole.graph.node]
    assert len(folded.graph.initializer) == len(whole.graph.initializer)
    np.testing.assert_allclose(run_exact(folded, images()), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_load_takes_less_than_four_times_the_memory_of_a_wide_layer(tmp_path: Path) -> None:
    """It was 6.7 times: each check, shape inference and folding serialized and parsed all weights."""
    made = Builder()
    x = made.op("Flatten", made.op("Relu", made.conv("x", 3, 64)))
    x = made.op("Relu", made.gemm(x, 64 * SIDE**2, 3000))
    path = tmp_path / "wide.onnx"
    onnx.save(made.model(made.gemm(x, 3000, 5)), path)
    size = path.stat().st_size / 2**20
    del made
    release_memory()
    reset_peak_memory()
    before = peak_memory_mib()
    classifier.load(path, (3, SIDE, SIDE))
    if before > 2000:
        pytest.skip("the kernel does not reset the peak")
    assert peak_memory_mib() - before < 4 * size


def test_check_model_finds_a_large_tensor_whose_values_are_cut_off() -> None:
    model = with_wide_layer()
    check_model(model)
    tensor = next(each for each in model.graph.initializer if tensor_bytes(each) > 1 << 20)
    values = numpy_helper.to_array(tensor)
    tensor.raw_data = values.tobytes()[:-8]
    with pytest.raises(ValueError, match="reshape"):
        check_model(model)


def test_load_says_that_a_file_with_a_large_tensor_cut_off_is_not_valid(tmp_path: Path) -> None:
    model = with_wide_layer()
    tensor = next(each for each in model.graph.initializer if tensor_bytes(each) > 1 << 20)
    tensor.raw_data = numpy_helper.to_array(tensor).tobytes()[:-8]
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(DataError, match="not a valid ONNX model"):
        classifier.load(tmp_path / "m.onnx", (3, SIDE, SIDE))
