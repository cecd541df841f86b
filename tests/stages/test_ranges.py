"""Ranges that are measured: which percentile is taken, and that the model and the package have its ranges."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline import quant
from pipeline.building import build
from pipeline.config.build_config import BuildConfig
from pipeline.packages.package import open_package
from pipeline.proof.judge import CandidateFigures
from pipeline.quant.divergence import ByImage
from pipeline.quant.observers import ObserverSet
from pipeline.quant.ranges import PERCENTILES, by_percentile, ranges_by
from pipeline.stages import ranges
from pipeline.stages.artefact_names import read_notes
from pipeline.stages.ranges import Trial

MakeConfig = Callable[..., BuildConfig]

MEASURED = "backend.quantize.calibrate_mode=measured"


def trial(divergence: list[float], noise: list[float]) -> Trial:
    figures = CandidateFigures(agreement=100, kl=sum(divergence), sqnr_db=30, drop=None, speed=None)
    return Trial({}, figures, ByImage(np.array(divergence), np.ones(len(noise)), np.array(noise)))


@pytest.mark.parametrize(
    ("gains", "is_better"),  # what is left of the distance of each image
    [
        ([0.9] * 8, True),
        ([0.995] * 8, False),  # on every image, and yet too little
        ([0.5, 1.3, 0.7, 1.2, 0.5, 1.3, 0.7, 1.2], False),  # on average .925, from .5 to 1.3
        ([0.8, 0.9, 0.7, 1.1, 0.9, 0.8, 0.9, 1.0], True),
        ([1.1] * 8, False),
        ([0.0] * 8, True),
    ],
)
def test_model_is_better_where_its_gain_is_more_than_the_images_leave_open(gains: list[float], is_better: bool) -> None:
    plain = trial([1.0] * len(gains), [3.0] * len(gains))
    assert ranges._is_better(trial(gains, [3 * gain for gain in gains]), plain) is is_better


def test_standard_error_is_that_of_images_drawn_anew() -> None:
    """Bootstrap: resampled images give a gain within one standard error of none as often as the rule says."""
    rng = np.random.default_rng(5)
    its = rng.exponential(1, (2, 400))
    mine = its * rng.lognormal(-0.02, 0.4, (2, 400))

    def gain(chosen: npt.NDArray[np.int64]) -> float:
        return sum(math.log(a[chosen].sum() / b[chosen].sum()) / 2 for a, b in zip(its, mine, strict=True))

    deviation = float(np.std([gain(rng.integers(0, 400, 400)) for _ in range(2000)]))
    mean, better = gain(np.arange(400)), ranges._is_better(trial(list(mine[0]), list(mine[1])), trial(*map(list, its)))
    assert abs(mean - deviation) > 0.1 * deviation  # else the two could be told apart by chance only
    assert better is (mean > max(0.01, deviation))


def test_no_model_is_better_than_one_without_divergence() -> None:
    exact, other = trial([0.0, 0.0], [0.0, 0.0]), trial([0.1, 0.1], [1.0, 1.0])
    assert not ranges._is_better(exact, exact)
    assert not ranges._is_better(other, exact)
    assert ranges._is_better(exact, other)


@pytest.mark.parametrize(
    ("first", "order"),
    [
        (99.9999, [99.9999, 99.9997, 99.999, 99.997]),
        (99.999, [99.999, 99.9997, 99.997, 99.9999]),
        (99.997, [99.997, 99.999, 99.9997, 99.9999]),
    ],
)
def test_percentiles_are_tried_from_that_of_the_histograms_outwards(first: float, order: list[float]) -> None:
    assert ranges._order(PERCENTILES, first) == order


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
    for module in (ranges, quant.ranges):
        monkeypatch.setattr(module, "PERCENTILES", (90.0, 100.0, 70.0))
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
    assert "note: ranges of percentile 100, the best of those tried on calibration images: 100 KL 0." in str(said)


@pytest.mark.slow
def test_model_is_that_of_the_percentile_which_was_taken(make_config: MakeConfig) -> None:
    measured = build(make_config(MEASURED), lambda line: None)
    (note,) = read_notes(measured.stages["ranges"])
    best = float(note.removeprefix("ranges of percentile ").partition(",")[0])
    assert best in PERCENTILES
    plain = build(make_config(f"backend.quantize.percentile={best}"), lambda line: None)
    models = [each.stages["quantize"] / "model.onnx" for each in (measured, plain)]
    assert models[0].read_bytes() == models[1].read_bytes()
    assert "ranges" not in plain.stages
