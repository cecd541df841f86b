"""judge.py: models that end the process of a runtime."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.host import isolated
from pipeline.proof import judge
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
