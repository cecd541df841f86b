from __future__ import annotations

import onnx
import pytest

from pipeline.quant.rounding import BLOCK
from pipeline.quant.work import measure_network, rounding_work


def test_measure_network_counts_a_known_network(tiny_model: onnx.ModelProto) -> None:
    """TinyResNet of tests/conftest.py: 32 px, pooled to 16, then 8 in the second layer."""
    found = measure_network(tiny_model)
    macs = 8 * 27 * 32**2 + 2 * 8 * 72 * 16**2 + (16 * 72 + 16 * 144 + 16 * 8) * 8**2 + 16 * 4
    assert found.macs == macs
    assert found.params == 8 * 27 + 2 * 8 * 72 + 16 * 72 + 16 * 144 + 16 * 8 + 16 * 4
    layers = [(8, 27), (8, 72), (8, 72), (16, 72), (16, 144), (16, 8), (4, 16)]
    assert found.rounding == sum(n**3 + 1.2 * n * n * m + 9e6 * n for m, n in layers)


def test_rounding_work_grows_with_the_cube_of_the_inputs() -> None:
    assert rounding_work(512, 4608) / rounding_work(256, 2304) == pytest.approx(4.6, abs=0.2)  # 27 s to 5 or 6 s
    assert rounding_work(64, 9, groups=64) == 64 * rounding_work(1, 9)
    assert rounding_work(4096, 25088) == pytest.approx(25088 / BLOCK * rounding_work(4096, BLOCK))


def test_measure_network_counts_layers_whose_sizes_are_not_known(tiny_model: onnx.ModelProto) -> None:
    known, model = measure_network(tiny_model), onnx.ModelProto()
    model.CopyFrom(tiny_model)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    found = measure_network(model)
    assert (found.params, found.rounding) == (known.params, known.rounding)
    assert 0 < found.macs <= known.macs
