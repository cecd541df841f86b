"""Speeds in turn: intervals beside the binomial distribution, and a measurement of real models."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from run_fixtures import TinyWorkspace, float32_model

from pipeline.proof import speed
from pipeline.proof.ratios import Ratio, median_interval, ratio
from pipeline.proof.speed import Candidate, Rates
from pipeline.runtimes.base import Runtime

INT8 = Candidate(Runtime.OPENVINO, "int8", Path("int8.onnx"))
FLOAT32 = Candidate(Runtime.OPENVINO, "float32", Path("float32.onnx"))
INT8_ORT = Candidate(Runtime.ONNXRUNTIME, "int8", Path("int8.onnx"))
FLOAT32_ORT = Candidate(Runtime.ONNXRUNTIME, "float32", Path("float32.onnx"))
ALL = [INT8, FLOAT32, INT8_ORT, FLOAT32_ORT]


@pytest.mark.parametrize(
    ("count", "left_out"), [(1, None), (5, None), (6, 0), (8, 0), (9, 1), (12, 2), (24, 6), (48, 16)]
)
def test_median_interval_is_that_of_tables_of_the_sign_test(count: int, left_out: int | None) -> None:
    values = list(np.random.default_rng(count).permutation(count).astype(float))
    wanted = None if left_out is None else (float(left_out), float(count - 1 - left_out))
    assert median_interval(values) == wanted


def test_median_interval_holds_the_median_in_95_of_100_draws() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        found = median_interval(list(random.lognormal(0.0, 0.5, 12)))
        assert found is not None
        held += found[0] <= 1.0 <= found[1]
    assert 0.95 <= held / 2000 <= 0.98  # 12 rounds have steps: 96.1%


def test_ratio_compares_rates_of_the_same_round() -> None:
    drifting = [10.0, 20.0, 40.0, 80.0, 160.0, 320.0]
    found = ratio([2 * rate for rate in drifting], drifting)
    assert found == Ratio(2.0, (2.0, 2.0))
    assert found.is_clear
    assert str(found) == "2.0x (2.0 to 2.0)"
    assert not ratio([1.0] * 5, [2.0] * 5).is_clear  # too few
    assert not ratio([1.0, 1.0, 1.0, 1.0, 1.0, 3.0], [2.0] * 6).is_clear


def rates(int8: float, float32: float, int8_ort: float, float32_ort: float) -> Rates:
    wobble = [0.99, 1.0, 1.01, 1.0, 0.98, 1.02]
    return Rates(8, 2, [[rate * each for each in wobble] for rate in (int8, float32, int8_ort, float32_ort)])


def test_record_names_the_fastest_runtime_and_each_ratio() -> None:
    found = speed.record(ALL, rates(100, 40, 80, 50))
    assert found["fastest"] == "openvino"
    assert found["runtimes"]["openvino"]["ratio"] == pytest.approx(2.5)
    assert found["runtimes"]["onnxruntime"] == {
        "int8": 80.0,
        "float32": 50.0,
        "ratio": pytest.approx(1.6),
        "interval": (pytest.approx(1.6), pytest.approx(1.6)),
    }
    assert found["beside"]["runtimes"] == ["openvino", "onnxruntime"]
    assert found["beside"]["ratio"] == pytest.approx(1.25)
    assert speed.describe(found, Runtime.OPENVINO) == (
        False,
        "int8 runs 2.5x (2.5 to 2.5) as fast as float32 in openvino",
    )
    assert speed.describe_choice(found, Runtime.OPENVINO) == (
        "auto takes openvino, 1.25x (1.25 to 1.25) as fast as onnxruntime"
    )


def test_record_names_no_fastest_runtime_where_the_rounds_do_not_tell() -> None:
    wild = [[100.0, 120.0, 90.0, 110.0, 95.0, 105.0], [50.0] * 6, [100.0] * 6, [100.0] * 6]
    found = speed.record(ALL, Rates(8, 2, wild))
    assert found["fastest"] is None
    line = speed.describe_choice(found, Runtime.OPENVINO)
    assert line is not None
    assert line.startswith("auto takes openvino; neither is clearly faster: ")


def test_describe_calls_float32_the_better_package_where_int8_is_slower() -> None:
    found = speed.record(ALL, rates(30, 40, 20, 50))
    assert speed.describe(found, Runtime.ONNXRUNTIME) == (
        True,
        "int8 runs 0.40x (0.40 to 0.40) as fast as float32 in onnxruntime: a float32 package is the better one here; "
        "build it with --set backend.dtype=fp32",
    )


def test_describe_others_says_where_the_other_runtime_is_slower_than_float32() -> None:
    found = speed.record(ALL, rates(90, 40, 20, 50))
    assert speed.describe_others(found, Runtime.OPENVINO) == [
        "int8 runs 0.40x (0.40 to 0.40) as fast as float32 in onnxruntime: run it in openvino, which auto takes"
    ]
    assert speed.describe_others(found, Runtime.ONNXRUNTIME) == []
    alone = speed.record([INT8, FLOAT32], Rates(8, 2, [[40.0] * 6, [90.0] * 6]))
    assert speed.describe_others(alone, Runtime.OPENVINO) == []


def test_describe_says_that_it_does_not_know() -> None:
    found = speed.record([INT8, FLOAT32], Rates(8, 2, [[90.0, 110.0, 100.0, 105.0, 95.0, 102.0], [100.0] * 6]))
    assert found["fastest"] == "openvino"
    assert found["beside"] is None
    assert speed.describe_choice(found, Runtime.OPENVINO) is None
    assert speed.describe(found, Runtime.OPENVINO) == (
        False,
        "whether int8 is faster than float32 in openvino is not known: 1.01x (0.90 to 1.10) as fast in 6 rounds; "
        "bench --reference measures longer",
    )
    assert speed.describe(found, Runtime.ONNXRUNTIME)[1] == (
        "how fast int8 is beside float32 in onnxruntime was not measured"
    )


def wide_model(path: Path, channels: int) -> Path:
    """A model whose convolution takes about the square of its channels."""
    model = float32_model()
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.name in ("w1", "b1", "w2"):
            repeats = [(0, channels - axis) if axis == 8 else (0, 0) for axis in values.shape]
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.pad(values, repeats), tensor.name))
    onnx.save(model, path)
    return path


def test_measure_tells_a_slow_model_from_a_fast_one(tmp_path: Path) -> None:
    """What a hundred times the arithmetic takes is clear at the first look; which precision does not matter here."""
    fast, slow = wide_model(tmp_path / "fast.onnx", 8), wide_model(tmp_path / "slow.onnx", 4096)
    candidates = [
        Candidate(Runtime.ONNXRUNTIME, "int8", fast),
        Candidate(Runtime.ONNXRUNTIME, "float32", slow),
    ]
    found = speed.measure(candidates, 5.0)
    assert len(found.rounds[0]) == len(found.rounds[1]) == 6
    measured = ratio(*found.rounds)
    assert measured.is_clear
    assert measured.median > 2


def test_measure_ends_after_its_time_where_nothing_is_clear(tiny: TinyWorkspace) -> None:
    candidates = [Candidate(Runtime.ONNXRUNTIME, precision, tiny.float32_model) for precision in ("int8", "float32")]
    found = speed.measure(candidates, 0.5)
    assert 1 <= len(found.rounds[0]) <= 49
    assert not math.isnan(sum(found.rounds[0]))


def test_measure_takes_smaller_batches_of_slow_models(tmp_path: Path) -> None:
    slow = wide_model(tmp_path / "slow.onnx", 4096)
    found = speed.measure([Candidate(Runtime.ONNXRUNTIME, "int8", slow)], 0.05)
    assert found.batch < 8
