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
    assert [path.name for path in out.iterdir()] == ["thresholds.json"]
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
