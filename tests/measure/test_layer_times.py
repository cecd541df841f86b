"""Where the time goes: kinds of work of a real profile, and its tables."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from run_fixtures import TinyWorkspace

from pipeline.commands.cli import main
from pipeline.measure import layer_times
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.profile import Work, profile


def images(batch: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (batch, 3, 32, 32)).astype(np.float32)


def test_int8_model_computes_its_layers_in_int8(runtime: Runtime, tiny_workspace_master: TinyWorkspace) -> None:
    times = profile(runtime, tiny_workspace_master.package.model, images(), threads=1, runs=5)
    works = {each.name: each.work for each in times}
    layers = [each.work for each in times if "Conv" in each.operator]
    assert layers == [Work.INT8] * 2
    assert Work.FLOAT not in works.values()
    assert all(each.seconds > 0 for each in times)
    assert [each.seconds for each in times] == sorted((each.seconds for each in times), reverse=True)


def test_float32_model_computes_its_layers_in_float(runtime: Runtime, tiny_workspace_master: TinyWorkspace) -> None:
    times = profile(runtime, tiny_workspace_master.float32_model, images(), threads=1, runs=5)
    assert {each.work for each in times} & {Work.INT8, Work.QUANTIZE} == set()
    assert sum(each.work is Work.FLOAT for each in times) == 3


def test_times_of_one_request_fit_into_the_time_of_the_whole_profile(
    runtime: Runtime, tiny_workspace_master: TinyWorkspace
) -> None:
    """On one thread, operations follow each other, so this holds on a busy machine too.

    The rest of the time opens the model and reads the profile. Times of all runs in place of their mean would be 300
    times as long, and times in another unit 1000 times as long or as short.
    """
    begun, runs = time.perf_counter(), 300
    times = profile(runtime, tiny_workspace_master.package.model, images(64), threads=1, runs=runs)
    whole = time.perf_counter() - begun
    assert 0.01 * whole < runs * sum(each.seconds for each in times) <= whole


def test_tables_add_up(tiny_workspace_master: TinyWorkspace) -> None:
    times = layer_times.measure(tiny_workspace_master.package, Runtime.ONNXRUNTIME, batch=2, runs=3)
    lines = layer_times.describe(times, 2)
    assert lines[0] == f"{1e3 * sum(each.seconds for each in times):.2f} ms per request"
    kinds = lines[2 : lines.index("   share       ms  operation")]
    assert sum(float(line.split("%")[0]) for line in kinds) == pytest.approx(100, abs=0.5)
    assert lines[-1].endswith(f"in {len(times) - 2} others")
    shown = lines[lines.index("   share       ms  operation") + 1 :]
    assert sum(float(line.split("%")[0]) for line in shown) == pytest.approx(100, abs=0.5)


def test_command_prints_and_writes_them(
    in_workspace: TinyWorkspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["analyze", "--time", "--runtime", "onnxruntime", "-b", "4", "--top", "3"]
    assert main([*arguments, "--json", str(tmp_path / "times.json")]) == 0
    out = capsys.readouterr().out
    assert "onnxruntime, 4 images per request" in out
    assert Work.INT8.value in out
    rows = json.loads((tmp_path / "times.json").read_text(encoding="utf-8"))
    assert {row["work"] for row in rows} >= {Work.INT8.value}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("analyze --time --images 3", "--images: has no effect with --time; "),
        ("analyze --runtime openvino", "--runtime: works only with --time; "),
        ("analyze -b 4", "--batch: works only with --time; "),
    ],
)
def test_flags_of_the_other_measurement_are_refused(
    in_workspace: TinyWorkspace, capsys: pytest.CaptureFixture[str], line: str, fault: str
) -> None:
    assert main(line.split()) == 2
    assert capsys.readouterr().err.startswith(f"error: {fault}")
