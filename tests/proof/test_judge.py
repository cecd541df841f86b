"""judge.py: models that end the process of a runtime."""

from __future__ import annotations

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
