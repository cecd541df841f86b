"""judge.py: models that end the process of a runtime."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from pipeline.data.imagenet import Sample
from pipeline.data.sources import ImageSource
from pipeline.errors import DataError
from pipeline.host import isolated
from pipeline.onnx_models.scores import Scores
from pipeline.proof import judge
from pipeline.proof.agreement import float32_answers
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import choose, installed_runtimes


def test_models_are_judged_in_the_next_runtime_when_the_usual_one_ends_its_process(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In OpenVINO 2026.4 the compilation of some graphs ended the process."""
    call = isolated.call

    def dies(function: Callable[..., None], runtime: Runtime, model: Path, seconds: float) -> None:
        if runtime is choose(Runtime.AUTO):
            raise isolated.LostError("died by SIGSEGV")
        call(function, runtime, model, seconds=seconds)

    monkeypatch.setattr(isolated, "call", dies)
    others = [runtime for runtime in installed_runtimes() if runtime is not choose(Runtime.AUTO)]
    if others:
        assert judge._surviving_runtime(tiny_onnx) is others[0]
    else:
        with pytest.raises(DataError, match="died by SIGSEGV"):
            judge._surviving_runtime(tiny_onnx)


def test_distance_falls_with_the_divergence_and_with_the_noise() -> None:
    def figures(kl: float, sqnr_db: float) -> judge.CandidateFigures:
        return judge.CandidateFigures(agreement=99.0, kl=kl, sqnr_db=sqnr_db, drop=None, speed=None)

    assert figures(0.0016, 30.0).distance == pytest.approx((0.0016 * 0.001) ** 0.5)
    assert figures(0.0016, 31.0).distance < figures(0.0016, 30.0).distance
    assert figures(0.0015, 30.0).distance < figures(0.0016, 30.0).distance
    assert figures(0.0, math.inf).distance == 0


@pytest.mark.parametrize(("ratios", "rounds"), [([0.9], 8), ([0.5], 8), ([0.8, 0.9], 32), ([0.9] * 7 + [0.8] * 3, 16)])
def test_speed_is_measured_until_it_is_clear_whether_a_model_is_fast_enough(
    ratios: list[float], rounds: int, monkeypatch: pytest.MonkeyPatch, tiny_onnx: Path
) -> None:
    measured = iter([seconds for _ in range(100) for ratio in ratios for seconds in (ratio, 1.0)])
    taken: list[float] = []

    def seconds(self: judge.Judge, pool: object, backend: object) -> float:
        taken.append(next(measured))
        return taken[-1]

    monkeypatch.setattr(judge.Judge, "_seconds", seconds)
    model = onnx.load(tiny_onnx)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    images = [np.zeros(shape, np.float32)] * 3
    samples = [Sample("image", "folder", ImageSource(tiny_onnx.parent, "image.png"), None)] * 3
    asked: list[judge.CandidateFigures] = []

    def is_wanted(figures: judge.CandidateFigures) -> bool:
        asked.append(figures)
        return True

    made = judge.Judge(images, float32_answers(tiny_onnx, images), samples, Scores.LOGITS)
    with made.opened(model) as plain, made.opened(model) as candidate:
        found = made.figures(candidate, plain, is_wanted=is_wanted, least_speed=0.85)
        assert made.figures(candidate, plain, is_wanted=lambda each: False).speed is None
    assert len(taken) == 2 * rounds
    assert found.speed == pytest.approx(np.median((ratios * 32)[:rounds]))
    assert [each.speed for each in asked] == [None] and found.agreement == asked[0].agreement == 100
