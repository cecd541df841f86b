"""Where gates are computed: what is measured, what is chosen, and that later stages go by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from pipeline.building import build
from pipeline.config.build_config import BuildConfig
from pipeline.host import isolated
from pipeline.models import exporter
from pipeline.proof import speed
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import choose, installed_runtimes
from pipeline.stages import place

MakeConfig = Callable[..., BuildConfig]


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    path = tmp_path / "gated.onnx"
    onnx.save(exporter.to_onnx(nn.Sequential(*layers, nn.Linear(8, 4)), (3, 32, 32)), path)
    return path


@pytest.mark.parametrize(
    ("rates", "in_float"),
    [
        ({"openvino": {"int8": 57.0, "float32": 94.0}, "onnxruntime": {"int8": 42.0, "float32": 15.0}}, True),
        ({"openvino": {"int8": 57.0, "float32": 40.0}, "onnxruntime": {"int8": 60.0, "float32": 15.0}}, False),
        ({"onnxruntime": {"int8": 42.0, "float32": 15.0}}, False),
        ({"onnxruntime": {"int8": 42.0, "float32": 41.5}}, True),  # as fast, and more accurate
    ],
)
def test_placement_is_that_of_the_fastest_runtime(rates: dict[str, dict[str, float]], in_float: bool) -> None:
    assert place._prefers_float(rates) is in_float


def test_placement_is_openvinos_when_nothing_was_measured() -> None:
    assert place._prefers_float({}) is (choose(Runtime.AUTO) is Runtime.OPENVINO)


@pytest.mark.parametrize(
    ("rates", "in_int8"),
    [
        ({"openvino": {"int8": 111.0, "float32": 100.0}, "onnxruntime": {"int8": 60.0, "float32": 90.0}}, True),
        ({"openvino": {"int8": 107.0, "float32": 100.0}, "onnxruntime": {"int8": 90.0, "float32": 60.0}}, False),
        ({}, False),
    ],
)
def test_scores_are_int8_when_that_is_worth_its_noise(rates: dict[str, dict[str, float]], in_int8: bool) -> None:
    assert place._is_worth_it(rates) is in_int8


def test_measure_leaves_out_a_runtime_that_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def call(function: object, candidates: list[speed.Candidate], budget_s: float, seconds: float) -> speed.Rates:
        if any(each.runtime is Runtime.OPENVINO for each in candidates):
            raise isolated.LostError("died by SIGSEGV")
        return speed.Rates(8, 2, [[10.0, 12.0, 11.0] for _ in candidates])

    monkeypatch.setattr(isolated, "call", call)
    one = speed.Candidate(Runtime.OPENVINO, "int8", tmp_path / "int8.onnx")
    other = speed.Candidate(Runtime.ONNXRUNTIME, "int8", tmp_path / "float32.onnx")
    assert place._rates([one, other], 1.0) == {}
    assert place._rates([other], 1.0) == {"onnxruntime": {"float32": 11.0}}


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
def test_build_leaves_gates_in_float_without_measuring_when_their_channels_were_scaled(
    make_config: MakeConfig, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "_measure", lambda *_: pytest.fail("measured"))
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
    monkeypatch.setattr(place, "_prefers_float", lambda measured: in_float)
    cfg = make_config("frontend.type=onnx", f"frontend.checkpoint={gated}")
    stages = build(cfg, lambda line: None).stages
    assert json.loads((stages["place"] / "placement.json").read_text())["gates_in_float"] is in_float
    graph = onnx.load(stages["quantize"] / "model.onnx").graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    read = {makers[name] for node in graph.node if node.op_type in ("Sigmoid", "HardSwish") for name in node.input}
    assert read == ({"Conv"} if in_float else {"DequantizeLinear"})


@pytest.mark.slow
def test_run_measures_both_placements_in_every_runtime(
    make_config: MakeConfig, gated: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(speed.SECONDS, "0.5")
    cfg = make_config("frontend.type=onnx", f"frontend.checkpoint={gated}")
    rates = json.loads((build(cfg, lambda line: None).stages["place"] / "figures.json").read_text())["rates"]
    assert set(rates) == {runtime.value for runtime in installed_runtimes()}
    assert all(each["int8"] > 0 and each["float32"] > 0 for each in rates.values())
