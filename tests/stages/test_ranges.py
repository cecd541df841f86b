"""Ranges that are measured: which percentile is taken, and that the model and the package have its ranges."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.building import build
from pipeline.config.build_config import BuildConfig
from pipeline.packages.package import open_package
from pipeline.quant.observers import ObserverSet
from pipeline.quant.ranges import PERCENTILES, by_percentile, ranges_by
from pipeline.stages import ranges

MakeConfig = Callable[..., BuildConfig]

MEASURED = "backend.quantize.calibrate_mode=measured"


@pytest.mark.parametrize(
    ("distances", "best"),
    [
        ({99.9999: 1.0, 99.9997: 0.9, 99.999: 0.8, 99.997: 1.2}, 99.999),
        ({99.9999: 1.0, 99.9997: 0.995, 99.999: 0.995, 99.997: 1.2}, 99.9999),  # within what a few images wander by
        ({99.9999: 1.0, 99.9997: 0.9, 99.999: 0.895, 99.997: 1.2}, 99.9997),
        ({99.9999: 1.0, 99.9997: 1.1, 99.999: 0.8, 99.997: 0.7}, 99.997),
        ({99.9997: 1.0, 99.999: 1.1}, 99.9997),  # the model of the widest could not be run
        ({99.9999: 0.0, 99.9997: 0.0, 99.999: 0.0, 99.997: 0.0}, 99.9999),
        ({}, None),
    ],
)
def test_widest_of_the_ranges_that_are_as_near_as_the_nearest_is_taken(
    distances: dict[float, float], best: float | None
) -> None:
    assert ranges._choose(distances) == best


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def distances(artefact: Path) -> dict[float, float]:
    """Return what the figures of the stage say of each percentile: the mean of divergence and noise."""
    tried = read(artefact / "figures.json")["tried"]
    return {float(name): math.sqrt(each["kl"] * 10 ** (-each["sqnr_db"] / 10)) for name, each in tried.items()}


@pytest.mark.slow
def test_package_has_the_ranges_of_the_best_percentile_tried(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Percentiles so far apart that the widest is the best by far."""
    monkeypatch.setattr(ranges, "PERCENTILES", (90.0, 100.0, 70.0))
    said: list[str] = []
    built = build(make_config(MEASURED), said.append)
    found = distances(built.stages["ranges"])
    assert found.keys() == {90.0, 100.0, 70.0}
    assert min(found, key=found.__getitem__) == 100.0
    seen, _ = ObserverSet.load(built.stages["calibrate"] / "observers.npz")
    wanted = {name: {"low": each.low, "high": each.high} for name, each in ranges_by(seen, by_percentile(100)).items()}
    assert read(built.stages["ranges"] / "thresholds.json") == wanted
    assert read(open_package(built.prefix).folder / "thresholds.json") == wanted
    assert built.prefix.parent.name == "tiny-int8-measured-3_32_32-vacc"
    assert "note: ranges of percentile 100, the best of those tried on calibration images: 90 KL 0." in str(said)


@pytest.mark.slow
def test_model_is_that_of_the_percentile_which_was_taken(make_config: MakeConfig) -> None:
    measured = build(make_config(MEASURED), lambda line: None)
    best = ranges._choose(distances(measured.stages["ranges"]))
    assert best in PERCENTILES
    plain = build(make_config(f"backend.quantize.percentile={best}"), lambda line: None)
    models = [each.stages["quantize"] / "model.onnx" for each in (measured, plain)]
    assert models[0].read_bytes() == models[1].read_bytes()
    assert "ranges" not in plain.stages
