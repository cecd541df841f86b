from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.config.choices import Frontend
from pipeline.config.sections import FrontendConfig
from pipeline.models import cost, zoo
from pipeline.stages.costs import BuildWork, expected_seconds, guess_work
from pipeline.stages.table import STAGES

SHAPE = (1, 3, 224, 224)


def work(macs_of: str, cores: int = 2, *, bfloat16: bool = True, rounds: bool = True, goal: bool = False) -> BuildWork:
    network = guess_work(FrontendConfig(type=Frontend.TIMM, model=macs_of, shape=SHAPE))
    return BuildWork(
        network=network,
        images=1000,
        evaluation_images=500,
        makes_weights=True,
        trial_s=15,
        tuning_s=900 if goal else 0,
        cores=cores,
        bfloat16=bfloat16,
        rounds=rounds,
    )


def test_every_stage_has_an_expected_time() -> None:
    found = expected_seconds([stage.name for stage in STAGES], work("resnet18", goal=True))
    assert list(found) == [stage.name for stage in STAGES]
    assert all(seconds > 0 for seconds in found.values())


def test_expected_seconds_are_near_those_of_the_build_that_they_were_taken_from() -> None:
    """resnet18 at 224 px, not on the sample, on 2 cores: half of the CPU seconds of docs/measured.md, in s."""
    measured = {"equalize": 0.65, "calibrate": 6.5, "round": 3.5}
    found = expected_seconds(measured, work("resnet18"))
    assert found == pytest.approx(measured, rel=0.35)


def test_expected_seconds_grow_with_the_network_and_shrink_with_the_cores() -> None:
    small, large = (expected_seconds(["calibrate", "round"], work(name)) for name in ("resnet18", "wide_resnet50_2"))
    assert large["calibrate"] > 3 * small["calibrate"]
    assert large["round"] > 3 * small["round"]
    assert expected_seconds(["calibrate"], work("resnet18", cores=4))["calibrate"] == small["calibrate"] / 2
    slower = expected_seconds(["calibrate"], work("resnet18", bfloat16=False, rounds=False))["calibrate"]
    assert 1.4 * small["calibrate"] < slower < 2 * small["calibrate"]


def test_expected_seconds_are_near_those_of_a_build_without_bfloat16() -> None:
    """An int8 model reads most images then; half of the CPU seconds of docs/measured.md, in s."""
    for name, measured in (("resnet18", 4.0), ("resnet50", 8.7)):
        found = expected_seconds(["calibrate"], work(name, bfloat16=False))["calibrate"]
        assert found == pytest.approx(measured, rel=0.35)


def test_rounding_takes_two_to_four_times_as_long_with_a_goal() -> None:
    """More images are read for it: resnet18 32 CPU seconds in place of 15, busy; docs/quantization.md."""
    plain, searched = (expected_seconds(["round"], work("resnet18", goal=goal))["round"] for goal in (False, True))
    assert 2 * plain < searched < 4 * plain


def test_guess_work_counts_a_network_of_the_table_at_the_size_of_the_build() -> None:
    row = zoo.find_model("timm", "resnet18")
    known = cost.count(row)
    found = guess_work(FrontendConfig(type=Frontend.TIMM, model="resnet18", shape=(1, 3, row.size // 2, row.size // 2)))
    assert found.macs == pytest.approx(known.macs / 4, rel=0.3)
    assert found.params == known.params


def test_guess_work_measures_an_onnx_file_and_goes_on_without_one(tmp_path: Path) -> None:
    weights = helper.make_tensor("w", TensorProto.FLOAT, (5, 3, 3, 3), [0.0] * 135)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 10, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5, 8, 6])],
        [weights],
    )
    onnx.save(helper.make_model(graph), tmp_path / "x.onnx")
    config = FrontendConfig(type=Frontend.ONNX, checkpoint=tmp_path / "x.onnx", shape=(1, 3, 10, 8))
    found = guess_work(config)
    assert (found.macs, found.params) == (5 * 8 * 6 * 27, 135)
    (tmp_path / "x.onnx").write_bytes(b"no model")
    assert guess_work(config).params > 1e6
