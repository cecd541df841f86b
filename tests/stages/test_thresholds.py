from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.build_config import BuildConfig
from pipeline.errors import ArtefactError
from pipeline.quant.observers import ObserverSet
from pipeline.stages import thresholds
from pipeline.stages.artefact_names import read_notes

MakeConfig = Callable[..., BuildConfig]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """A calibration of two tensors: a thousand values from -1 to 1 with one at 50, and a ReLU's."""
    folder = tmp_path / "calibrate"
    folder.mkdir()
    values = np.linspace(-1, 1, 1000, dtype=np.float32)
    values[500] = 50.0
    seen = ObserverSet(["input", "relu"])
    seen.add({"input": values, "relu": np.maximum(values, 0)})
    seen.save(folder / "observers.npz", images=1)
    return {"calibrate": folder}


def run(cfg: BuildConfig, inputs: dict[str, Path], out: Path) -> dict[str, dict[str, float]]:
    out.mkdir()
    thresholds.run(thresholds.take_settings(cfg), inputs, out)
    chosen = thresholds.take_settings(cfg).percentile is None
    assert {path.name for path in out.iterdir()} == {"thresholds.json", *(["figures.json"] if chosen else [])}
    ranges: dict[str, dict[str, float]] = json.loads((out / "thresholds.json").read_text(encoding="utf-8"))
    return ranges


def test_run_keeps_everything_when_the_mode_is_max(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    found = run(make_config("backend.quantize.calibrate_mode=max"), inputs, tmp_path / "out")
    assert found == {"input": {"low": -1.0, "high": 50.0}, "relu": {"low": 0.0, "high": 50.0}}


def test_run_cuts_the_outlier_when_the_mode_is_percentile(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    found = run(make_config("backend.quantize.percentile=99.9"), inputs, tmp_path / "out")
    assert found["input"]["high"] == pytest.approx(1.0, rel=2**-9)
    assert -1.0 <= found["input"]["low"] < -0.99
    assert found["relu"] == {"low": 0.0, "high": found["input"]["high"]}
    everything = run(make_config("backend.quantize.percentile=100"), inputs, tmp_path / "all")
    assert everything["input"] == {"low": -1.0, "high": 50.0}


def test_run_chooses_the_percentile_where_the_build_file_names_none(
    make_config: MakeConfig, tmp_path: Path, inputs: dict[str, Path]
) -> None:
    values = np.random.default_rng(0).normal(0, 1, 1 << 22).astype(np.float32)
    seen = ObserverSet(["linear"])
    seen.add({"linear": values})
    seen.save(inputs["calibrate"] / "observers.npz", images=1)
    out, stated = tmp_path / "out", tmp_path / "stated"
    out.mkdir()
    thresholds.run(thresholds.take_settings(make_config()), inputs, out)
    assert json.loads((out / "figures.json").read_text(encoding="utf-8")) == {"percentile": 99.999}
    assert read_notes(out) == ["ranges of percentile 99.999: by the histograms, clearly less noise so"]
    named = run(make_config("backend.quantize.percentile=99.999"), inputs, stated)
    assert json.loads((out / "thresholds.json").read_text(encoding="utf-8")) == named
    widest = run(make_config("backend.quantize.percentile=99.9999"), inputs, tmp_path / "widest")
    assert widest["linear"]["high"] > named["linear"]["high"]  # a percentile that is named stays what it is


def test_run_says_what_to_do_when_the_calibration_is_damaged(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    path = inputs["calibrate"] / "observers.npz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ArtefactError) as caught:
        run(make_config(), inputs, tmp_path / "out")
    assert str(caught.value) == f"{path}: invalid calibration file (File is not a zip file); delete it and build again"


def test_run_keeps_everything_when_there_are_too_few_values_for_a_divergence(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Too few values for a distribution: nothing is cut. The calibration's own are enough, see test_search.py."""
    found = run(make_config("backend.quantize.calibrate_mode=kl_divergence"), inputs, tmp_path / "out")
    assert found["input"] == {"low": -1.0, "high": 50.0}


def test_run_keeps_an_outlier_that_is_dear_when_the_mode_is_mse(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    found = run(make_config("backend.quantize.calibrate_mode=mse"), inputs, tmp_path / "out")
    assert 40 < found["input"]["high"] <= 50.0
