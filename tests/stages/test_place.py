"""Where gates are computed: what is measured, what is chosen, and that later stages go by it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from pipeline.building import build
from pipeline.config.build_config import BuildConfig
from pipeline.host import isolated
from pipeline.models import exporter
from pipeline.packages.package import open_package
from pipeline.proof import placements, speed
from pipeline.reports import build as page
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import choose, installed_runtimes
from pipeline.runtimes.own_placement import take_placement
from pipeline.stages import place

MakeConfig = Callable[..., BuildConfig]


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    path = tmp_path / "gated.onnx"
    onnx.save(exporter.to_onnx(nn.Sequential(*layers, nn.Linear(8, 4)), (3, 32, 32)), path)
    return path


def test_gates_are_openvinos_when_nothing_was_measured() -> None:
    assert place._leaves_gates(None) is (choose(Runtime.AUTO) is Runtime.OPENVINO)


def test_rates_are_none_when_a_runtime_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def call(function: object, candidates: list[speed.Candidate], *_: object, seconds: float) -> speed.Rates:
        if any(each.runtime is Runtime.OPENVINO for each in candidates):
            raise isolated.LostError("died by SIGSEGV")
        return speed.Rates(8, 2, [[10.0, 12.0, 11.0] for _ in candidates])

    monkeypatch.setattr(isolated, "call", call)
    one = speed.Candidate(Runtime.OPENVINO, "int8", tmp_path / "int8.onnx")
    other = speed.Candidate(Runtime.ONNXRUNTIME, "int8", tmp_path / "float32.onnx")
    assert place._rates([one, other], 1.0, 1.08, ()) is None
    rates = place._rates([other], 1.0, 1.08, ())
    assert rates is not None
    assert rates.rounds == [[10.0, 12.0, 11.0]]


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A network whose first SiLU has one channel that is a hundred times as wide as the others."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        first.weight[0] *= 100
    layers = [first, nn.SiLU(), nn.Conv2d(8, 8, 3, groups=8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    path = tmp_path / "wide.onnx"
    onnx.save(exporter.to_onnx(nn.Sequential(*layers), (3, 32, 32)), path)
    return path


@pytest.mark.slow
def test_build_measures_gates_in_onnxruntime_alone_when_their_channels_were_scaled(
    make_config: MakeConfig, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(candidates: list[speed.Candidate], *given: Any) -> None:
        assert {each.runtime for each in candidates} == {Runtime.ONNXRUNTIME}

    monkeypatch.setenv(speed.SECONDS, "0.5")
    monkeypatch.setattr(place, "_rates", measured)
    said: list[str] = []
    stages = build(make_config("frontend.type=onnx", f"frontend.checkpoint={wide}"), said.append).stages
    assert json.loads((stages["equalize"] / "figures.json").read_text())["gates"] == 1
    assert json.loads((stages["place"] / "placement.json").read_text())["gates_in_float"] is True
    note = "note: gates (SiLU, GELU, HardSwish, squeeze-and-excitation) are float32: their channels differ too much"
    assert note in str(said)


@pytest.mark.slow
@pytest.mark.parametrize("in_float", [False, True])
def test_build_goes_by_the_placement(
    make_config: MakeConfig, gated: Path, monkeypatch: pytest.MonkeyPatch, in_float: bool
) -> None:
    monkeypatch.setattr(place, "_leaves_gates", lambda compared: in_float)
    cfg = make_config("frontend.type=onnx", f"frontend.checkpoint={gated}")
    stages = build(cfg, lambda line: None).stages
    assert json.loads((stages["place"] / "placement.json").read_text())["gates_in_float"] is in_float
    graph = onnx.load(stages["quantize"] / "model.onnx").graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    read = {makers[name] for node in graph.node if node.op_type in ("Sigmoid", "HardSwish") for name in node.input}
    assert read == ({"Conv"} if in_float else {"DequantizeLinear"})


@pytest.mark.slow
@pytest.mark.parametrize(("times", "chosen"), [(2.0, "int8"), (0.5, "float32")])
def test_gates_are_int8_in_onnxruntime_alone_when_they_are_faster_there_and_slower_in_openvino(
    make_config: MakeConfig, gated: Path, monkeypatch: pytest.MonkeyPatch, times: float, chosen: str
) -> None:
    """Rates are made up; what the models answer is theirs."""
    measure = place._rates

    def with_rates(candidates: list[speed.Candidate], *given: Any) -> speed.Rates | None:
        rates = measure(candidates, *given)
        assert rates is not None
        gains = {Runtime.OPENVINO: (9.0, 8.0), Runtime.ONNXRUNTIME: (1.0, times)}
        rounds = [[gains[each.runtime][each.model.stem == "int8"]] * 6 for each in candidates]
        return dataclasses.replace(rates, rounds=rounds)

    monkeypatch.setenv(speed.SECONDS, "0.2")
    monkeypatch.setattr(place, "_rates", with_rates)
    monkeypatch.setattr(placements, "_MOST_GROWTH", 100.0)
    monkeypatch.setattr(placements, "_SHARE", 1.0)
    built = build(make_config("frontend.type=onnx", f"frontend.checkpoint={gated}"), lambda line: None)
    found = open_package(built.prefix).placements()
    assert found[place._GATES]["chosen"] == "float32"
    assert found[place._ONNXRUNTIME_GATES]["chosen"] == chosen
    assert (take_placement(onnx.load(built.stages["quantize"] / "model.onnx")) is not None) == (chosen == "int8")


@pytest.fixture
def sharp(tmp_path: Path) -> Path:
    """A transformer of two blocks, whose scores are nearly one-hot behind their softmax."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
            with torch.no_grad():
                self.qkv.weight[:64] *= 6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            query, key, value = self.qkv(self.norm(x)).chunk(3, -1)
            shares = torch.softmax(query @ key.transpose(1, 2) / 32**0.5, -1)
            mixed: torch.Tensor = x + self.out(shares @ value)
            return mixed

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.blocks = nn.Conv2d(3, 32, 4, 4), nn.Sequential(Block(), Block())
            self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.blocks(self.stem(x).flatten(2).transpose(1, 2))
            scores: torch.Tensor = self.head(self.norm(tokens).mean(1))
            return scores

    torch.manual_seed(0)
    path = tmp_path / "sharp.onnx"
    onnx.save(exporter.to_onnx(Network(), (3, 32, 32)), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("part", "network"), [(place._GATES, "gated"), (place._SCORES, "sharp")])
def test_run_measures_speed_and_accuracy_of_both_placements(
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    part: str,
    network: str,
) -> None:
    monkeypatch.setenv(speed.SECONDS, "0.5")
    said: list[str] = []
    cfg = make_config("frontend.type=onnx", f"frontend.checkpoint={request.getfixturevalue(network)}")
    built = build(cfg, said.append)
    found = open_package(built.prefix).placements()
    assert set(found) - {place._ONNXRUNTIME_GATES} == {part}
    assert found == json.loads((built.stages["place"] / "figures.json").read_text())["placements"]
    for each in found[part]["placements"].values():
        assert each["runtime"] in [runtime.value for runtime in installed_runtimes()]
        assert each["images_per_s"] > 0
        assert each["sqnr_db"] > 5
        assert each["kl"] >= 0
    assert found[part]["images"] == 20
    chosen = found[part]["chosen"]
    assert any(f"note: {part} are {chosen}: " in line for line in said)
    page.write(built, tmp_path / "page.html")
    assert f">{part} are {chosen}: " in (tmp_path / "page.html").read_text(encoding="utf-8")
    placed = json.loads((built.stages["place"] / "placement.json").read_text())
    gates_in_float = part == place._GATES and chosen == "float32"
    in_onnxruntime = found.get(place._ONNXRUNTIME_GATES, {}).get("chosen") == "int8"
    scores_in_int8 = part == place._SCORES and chosen == "int8"
    expected = {"gates_in_float": gates_in_float, "onnxruntime_gates": in_onnxruntime, "scores_in_int8": scores_in_int8}
    assert placed == expected
    assert open_package(built.prefix).report()["placement"] == placed


@pytest.mark.slow
@pytest.mark.parametrize(("share", "chosen"), [(1e-6, "float32"), (1.0, "int8")])
def test_scores_are_int8_when_their_speed_is_worth_the_noise_that_was_measured(
    make_config: MakeConfig, sharp: Path, monkeypatch: pytest.MonkeyPatch, share: float, chosen: str
) -> None:
    """Rates and the price are made up; what the models answer is theirs."""
    measure = place._rates

    def with_rates(candidates: list[speed.Candidate], *given: Any) -> speed.Rates | None:
        rates = measure(candidates, *given)
        assert rates is not None
        rounds = [[2.0 if each.model.stem == "int8" else 1.0] * 6 for each in candidates]
        return dataclasses.replace(rates, rounds=rounds)

    monkeypatch.setenv(speed.SECONDS, "0.2")
    monkeypatch.setattr(place, "_rates", with_rates)
    monkeypatch.setattr(placements, "_SHARE", share)
    cfg = make_config("frontend.type=onnx", f"frontend.checkpoint={sharp}")
    found = open_package(build(cfg, lambda line: None).prefix).placements()[place._SCORES]
    assert found["lost_db"] > 0.1
    assert found["chosen"] == chosen
