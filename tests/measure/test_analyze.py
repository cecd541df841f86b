"""The analyze command, on a package that was built."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FinishedBuild

from pipeline.building import build
from pipeline.commands.cli import main
from pipeline.config.build_config import BuildConfig
from pipeline.measure.analyze import Row, describe
from pipeline.packages.package import open_package
from pipeline.quant.sensitivity import Kind, QuantizerCost
from pipeline.runtimes.opening import installed_runtimes
from pipeline.stages import tune

MakeConfig = Callable[..., BuildConfig]


def quiet(line: str) -> None:
    pass


@pytest.mark.slow
def test_analyze_names_every_quantizer_and_its_share(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = build(make_config(), quiet).prefix
    out = tmp_path / "costs.json"
    assert main(["analyze", "-m", str(prefix), "--top", "3", "--images", "5", "--json", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    runtimes = installed_runtimes()
    assert len(lines) == 7 + len(runtimes)  # package, quantization, kernels, header, three rows, the rest
    assert re.fullmatch(
        r"quantization \(exact arithmetic against float32\): \d+\.\d dB, KL [\d.]+, 5/5 answers", lines[1]
    )
    for line, runtime in zip(lines[2:], runtimes, strict=False):
        assert line.startswith(f"kernels of this CPU ({runtime.value} against exact arithmetic): ")
        assert "; both together " in line
        assert "refused" not in line
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert f"in {len(rows) - 3} others" in lines[-1]
    assert sum(row["noise_percent"] for row in rows) == pytest.approx(100, abs=0.01)
    assert {row["kind"] for row in rows} == {"activation", "weights"}
    work = {row["name"]: row["work_percent"] for row in rows if row["kind"] == "weights"}
    assert 90 < sum(work.values()) < 100  # all but the classifier, which is in float
    assert all(row["sqnr_db"] > 10 for row in rows)


@pytest.mark.slow
def test_analyze_knows_the_activations_that_the_search_split(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "_reached", lambda goal, figures: figures.speed not in (None, 1.0))  # once one is kept
    for other in ("find_streams", "find_joins"):  # of the small network they are worth more, and would come first
        monkeypatch.setattr(tune, other, lambda float32: {})
    monkeypatch.setattr(tune, "_DOUBT", 1e9)  # splits are tried, however little they should save
    coarse = ("backend.quantize.calibrate_mode=max", "backend.quantize.weight_rounding=nearest")
    built = build(make_config(*coarse, "accuracy.min_agreement=100", "accuracy.min_speed=0.001"), quiet)
    parted = open_package(built.prefix).report()["accuracy"]["split_activations"]
    assert parted
    out = tmp_path / "costs.json"
    assert main(["analyze", "-m", str(built.prefix), "--images", "5", "--json", str(out)]) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert parted.keys() <= {row["name"] for row in rows if row["kind"] == "activation"}
    assert all(row["sqnr_db"] > 10 for row in rows)


@pytest.mark.slow
def test_analyze_gives_an_error_line_when_there_is_nothing_to_analyze(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    built = build(make_config("backend.dtype=fp32"), quiet).prefix
    assert main(["analyze", "-m", str(built)]) == 2
    assert "a package of fp32 has no quantizers to analyze" in capsys.readouterr().err


def test_analyze_gives_an_error_line_when_the_float32_model_is_elsewhere(
    finished: FinishedBuild, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = finished.built.prefix
    moved = tmp_path / "elsewhere" / prefix.parent.name
    shutil.copytree(prefix.parent, moved)
    assert main(["analyze", "-m", str(moved / prefix.name)]) == 2
    assert "the float32 model it was made from is not here" in capsys.readouterr().err


def row(kind: Kind, noise_percent: float) -> Row:
    cost = QuantizerCost(kind, "x", ("conv",), noise=noise_percent, sqnr_db=90.0, kl=0.0)
    return Row(cost, noise_percent, 50.0)


@pytest.mark.parametrize(
    ("rows", "last"),
    [
        ([row(Kind.WEIGHTS, 75.0), row(Kind.ACTIVATION, 25.0)], "of all, weights 75.0%, activations 25.0%"),
        ([row(Kind.WEIGHTS, 0.0), row(Kind.ACTIVATION, 0.0)], "of all, weights 0.0%, activations 0.0%"),
        ([], "nothing is quantized: the network has no layer in int8, so nothing can be ranked"),
    ],
)
def test_describe_ends_with_the_shares_that_there_are(rows: list[Row], last: str) -> None:
    assert describe(rows, 1)[-1].endswith(last)
