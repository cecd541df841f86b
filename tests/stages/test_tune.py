"""tune.py: what it leaves in float, what it keeps to, and that it goes on where it was."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest

from pipeline.building import Built, build
from pipeline.config.build_config import BuildConfig
from pipeline.config.sections import AccuracyConfig
from pipeline.data.calibration_list import FITTING_IMAGES, choose_evenly
from pipeline.errors import ConfigError
from pipeline.host import isolated
from pipeline.packages.package import open_package
from pipeline.proof import agreement, judge
from pipeline.proof.changes import How, Step
from pipeline.reports.summary import summarize
from pipeline.runtimes.float_arithmetic import BFLOAT16
from pipeline.stages import tune
from pipeline.terminal import console

MakeConfig = Callable[..., BuildConfig]

# A model that 8 bits serve badly: most answers of such ranges are wrong.
COARSE = ("backend.quantize.calibrate_mode=max", "backend.quantize.weight_rounding=nearest")
ANY_SPEED = "accuracy.min_speed=0.001"  # a network of microseconds: nothing is said of speed here


def quiet(line: str) -> None:
    pass


def outcome(built: Built) -> dict[str, Any]:
    found: dict[str, Any] = open_package(built.prefix).report()["accuracy"]
    return found


def quantized(built: Built) -> set[str]:
    model = onnx.load(open_package(built.prefix).model)
    return {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}


@pytest.mark.slow
def test_nothing_is_tried_when_the_plain_model_reaches_the_goal(make_config: MakeConfig) -> None:
    built = build(make_config("accuracy.min_agreement=51"), quiet)
    found = outcome(built)
    assert found["reached"] and found["float_activations"] == []
    assert [step["activation"] for step in found["steps"]] == [""]
    assert found["steps"][0]["figures"]["speed"] == 1.0


@pytest.mark.slow
def test_search_keeps_what_lowers_the_divergence_and_says_what_each_step_bought(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "computes_bfloat16", lambda: False)  # which may cost accuracy, for time
    monkeypatch.setattr(tune, "_reached", lambda goal, figures: False)
    built = build(make_config(*COARSE, "accuracy.min_agreement=100", ANY_SPEED), quiet)
    found = outcome(built)
    kept = [step for step in found["steps"] if step["kept"]]
    assert not found["reached"]
    assert len(kept) > 1
    distances = [judge.CandidateFigures(**step["figures"]).distance for step in kept]
    assert distances == sorted(distances, reverse=True)
    assert found["float_activations"] == [step["activation"] for step in kept[1:] if step["how"] == "in float"]
    halved = {step["activation"] for step in kept if step["how"] == "split"} - set(found["float_activations"])
    assert found["split_activations"].keys() == halved
    assert bool(found["float_sums"]) == any(step["how"] == How.SUMS.value for step in kept)
    assert halved or found["float_activations"] or found["float_sums"]
    assert not quantized(built) & set(found["float_activations"])
    lines = summarize(built)
    assert sum(" in float" in line or " split" in line for line in lines) == len(found["steps"]) - 1
    assert any("goal NOT reached" in line for line in lines)


@pytest.mark.slow
def test_search_keeps_nothing_that_is_too_slow(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "_reached", lambda goal, figures: False)
    seconds = iter([1.0, 2.0] * 1000)  # each candidate at half the speed
    monkeypatch.setattr(judge.Judge, "_seconds", lambda self, pool, backend: next(seconds))
    found = outcome(build(make_config(*COARSE, "accuracy.min_agreement=100"), quiet))
    assert len(found["steps"]) > 1
    plain = judge.CandidateFigures(**found["steps"][0]["figures"])
    for step in map(Step.from_document, found["steps"][1:]):
        least = tune._LEAST_GAIN if step.how is How.IN_FLOAT else tune._LEAST_GAIN_INT8
        assert step.figures.speed == (0.5 if step.figures.distance < least * plain.distance else None)
    assert found["float_activations"] == [] and found["split_activations"] == {}


@pytest.mark.slow
def test_search_leaves_out_a_model_that_ends_its_process_and_says_so(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In OpenVINO 2026.4 the compilation of some graphs ends the process; the first model is not the only such one."""
    monkeypatch.setattr(tune, "_reached", lambda goal, figures: False)
    monkeypatch.setattr(tune, "_DOUBT", 1e9)  # everything is tried, however little it should save
    console.configure()
    call, opened = isolated.call, []

    def dies(function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
        if function is judge._run_once:
            opened.append(arguments)
            if len(opened) == 2:  # the first candidate
                raise isolated.LostError("died by SIGSEGV")
        return call(function, *arguments, seconds=seconds)

    monkeypatch.setattr(isolated, "call", dies)
    try:
        built = build(make_config(*COARSE, "accuracy.min_agreement=100", ANY_SPEED), quiet)
    finally:
        console.configure(quiet=True)
    found = outcome(built)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tune: ")]
    (lost,) = found["lost"].items()
    assert lost[1] == "died by SIGSEGV"
    name, _, how = lost[0].partition(" ")
    assert how.partition(",")[0] in [each.value for each in How]
    assert lost[0] not in [str(Step.from_document(step).change) for step in found["steps"]]
    if how != How.SUMS.value:
        assert name in quantized(built) or name in found["float_activations"]
    assert any(lost[0] in line and "died by SIGSEGV" in line for line in said)
    assert len(opened) == len(found["steps"]) + 1 > 2


@pytest.mark.slow
def test_search_says_what_it_would_still_buy(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "_reached", lambda goal, figures: False)
    console.configure()
    try:
        found = outcome(build(make_config(*COARSE, "accuracy.min_agreement=100", ANY_SPEED), quiet))
    finally:
        console.configure(quiet=True)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tune: agreement")]
    kl = found["steps"][0]["figures"]["kl"]
    assert len(said) == len(found["steps"])
    assert f"KL {kl:.5f}, speed 1.00; " in said[0]
    left = float(said[0].partition("about ")[2].partition(";")[0])
    assert 0 <= left < kl


@pytest.mark.slow
@pytest.mark.parametrize("why", ["no torch", "an operator"])
def test_search_runs_the_network_for_each_quantizer_when_there_are_no_gradients(
    why: str, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.learn import fisher
    from pipeline.learn.operators import UnsupportedError

    def refuses(*arguments: Any) -> NoReturn:
        raise UnsupportedError("operator Cos")

    if why == "no torch":
        monkeypatch.setitem(sys.modules, "pipeline.learn.operators", None)
    else:
        monkeypatch.setattr(fisher, "divergences", refuses)
    monkeypatch.setattr(tune, "_reached", lambda goal, figures: False)
    found = outcome(build(make_config(*COARSE, "accuracy.min_agreement=100", ANY_SPEED), quiet))
    assert len(found["steps"]) > 1


@pytest.mark.slow
@pytest.mark.parametrize("multiplies", [True, False])
def test_bfloat16_is_tried_when_nothing_else_is_left_and_the_cpu_multiplies_it(
    multiplies: bool, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "computes_bfloat16", lambda: multiplies)
    monkeypatch.setattr(tune, "_reached", lambda goal, figures: False)
    monkeypatch.setattr(tune, "_DOUBT", 1e9)  # everything is tried, however little it should save
    built = build(make_config(*COARSE, "accuracy.min_agreement=100", ANY_SPEED), quiet)
    found = outcome(built)
    tried = [step for step in found["steps"] if step["how"] == How.HALVED.value]
    left = bool(found["float_activations"] or found["float_sums"])
    assert len(tried) == (multiplies and left)
    marks = {each.key for each in onnx.load(open_package(built.prefix).model).metadata_props}
    assert (BFLOAT16 in marks) == found["bfloat16"] == any(step["kept"] for step in tried)


@pytest.mark.slow
def test_search_ends_when_the_time_is_over(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "_reached", lambda goal, figures: False)
    found = outcome(build(make_config("accuracy.min_agreement=100", "accuracy.budget_minutes=0.000001"), quiet))
    assert len(found["steps"]) == 1


@pytest.mark.slow
def test_search_goes_on_after_the_last_trial_when_it_was_interrupted(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tune, "_reached", lambda goal, figures: False)
    monkeypatch.setattr(tune, "_DOUBT", 1e9)  # everything is tried, however little it should save
    cfg = make_config(*COARSE, "accuracy.min_agreement=100", ANY_SPEED)
    figures = judge.Judge.figures
    judged: list[int] = []

    def interrupted(self: Any, candidate: Any, plain: Any, **options: Any) -> judge.CandidateFigures:
        judged.append(1)
        if len(judged) == 3:
            raise KeyboardInterrupt
        return figures(self, candidate, plain, **options)

    monkeypatch.setattr(judge.Judge, "figures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(cfg, quiet)
    (journal,) = (tmp_path / "workspace" / ".cache" / "tune").glob(".*.partial/journal.json")
    before = json.loads(journal.read_text(encoding="utf-8"))["steps"]
    assert len(before) == 2
    found = outcome(build(cfg, quiet))
    assert found["steps"][:2] == before
    assert len(judged) == len(found["steps"]) + 1  # the interrupted trial again, no other


def test_judged_images_are_others_than_those_that_weights_were_rounded_by() -> None:
    judged = agreement.choose(1000, 400)
    assert len(judged) == len(set(judged)) == 400
    assert not set(choose_evenly(1000, FITTING_IMAGES)) & set(judged)
    assert agreement.choose(20, 400) == list(range(20))  # all were used, and there are no others
    further = agreement.choose_further(1000)
    assert len(further) > 400 and agreement.choose_further(500) == []
    assert not set(further) & {*judged, *agreement.choose(1000), *choose_evenly(1000, FITTING_IMAGES)}


@pytest.mark.slow
def test_drop_is_of_top_1_on_the_same_images(make_config: MakeConfig) -> None:
    found = outcome(build(make_config("accuracy.max_drop=100"), quiet))
    drop = found["steps"][0]["figures"]["drop"]
    assert found["reached"] and np.isfinite(drop)


@pytest.mark.parametrize(
    ("goal", "reached"),
    [
        (AccuracyConfig(max_kl=0.0015), True),
        (AccuracyConfig(max_kl=0.0014), False),
        (AccuracyConfig(max_kl=0.0015, min_agreement=99.5), False),
        (AccuracyConfig(max_kl=0.0015, min_agreement=99.25, max_drop=0.25), True),
        (AccuracyConfig(max_kl=0.0015, max_drop=0.0), False),
    ],
)
def test_goal_is_reached_when_all_that_it_names_is(goal: AccuracyConfig, reached: bool) -> None:
    figures = judge.CandidateFigures(agreement=99.25, kl=0.0015, sqnr_db=30.0, drop=0.25, speed=1.0)
    assert tune._reached(goal, figures) is reached


@pytest.mark.slow
def test_search_stops_at_the_divergence_that_it_was_given(make_config: MakeConfig) -> None:
    plain = outcome(build(make_config(*COARSE, "accuracy.max_kl=1"), quiet))
    assert plain["reached"] and len(plain["steps"]) == 1
    wanted = 0.9 * plain["steps"][0]["figures"]["kl"]
    found = outcome(build(make_config(*COARSE, f"accuracy.max_kl={wanted}", ANY_SPEED), quiet))
    kept = [step["figures"]["kl"] for step in found["steps"] if step["kept"]]
    assert found["reached"] and kept[-1] <= wanted < min(kept[:-1])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("accuracy={min_speed: 0.9}", "accuracy: has no goal"),
        ("accuracy.max_kl=0", "accuracy.max_kl: expected nats > 0, got 0"),
        ("accuracy.min_agreement=101", "accuracy.min_agreement: expected % in (50, 100], got 101"),
        ("accuracy.min_agreement=0.99", "accuracy.min_agreement: expected % in (50, 100], got 0.99"),
        ("accuracy={max_drop: -1}", "accuracy.max_drop: expected points in [0, 100], got -1"),
        ("accuracy={max_drop: 1, min_speed: 0}", "accuracy.min_speed: expected a share in (0, 1], got 0"),
        ("accuracy={max_drop: 1, budget_minutes: none}", "accuracy.budget_minutes: expected minutes > 0, got 'none'"),
        ("accuracy={max_drop: 1, min_sped: 1}", "did you mean 'min_speed'"),
        ("accuracy=high", "accuracy: expected a section of keys"),
    ],
)
def test_bad_goals_are_faults_of_the_build_file(make_config: MakeConfig, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(override)
    assert words in str(caught.value)
