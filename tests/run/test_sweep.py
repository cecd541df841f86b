"""sweep.py: what it measures, what it chooses, and that bench takes it from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from run_fixtures import TinyWorkspace, float32_model, write_package

from pipeline.commands.cli import main
from pipeline.errors import DataError
from pipeline.host import hardware
from pipeline.run import sweep, sweep_record
from pipeline.run.sweep import Point, Setting, Sweep
from pipeline.runtimes.base import Runtime

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INT8_PIPELINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        return code, *capsys.readouterr()

    return run


def point(batch: int, throughput: float, latency_ms: float) -> Point:
    return Point(Setting("onnxruntime", batch, 2), throughput, latency_ms)


POINTS = [point(1, 100, 10), point(2, 180, 12), point(4, 197, 21), point(8, 200, 41), point(16, 150, 99)]


@pytest.mark.parametrize(
    ("max_latency", "batch"),
    # 197 of 200 is as good, and of half the latency.
    [(None, 4), (41.0, 4), (20.0, 2), (10.0, 1)],
)
def test_best_is_the_fastest_within_the_latency(max_latency: float | None, batch: int) -> None:
    assert sweep.best_of(POINTS, max_latency).setting.batch == batch


def test_near_best_says_what_is_possible_when_no_setting_is_quick_enough() -> None:
    with pytest.raises(DataError) as caught:
        sweep.near_best(POINTS, 9.5)
    assert str(caught.value) == (
        "--max_latency 9.5: no setting answers in that time here; the quickest (--runtime onnxruntime -b 1 -i 2) "
        "takes 10.0 ms"
    )


def test_frontier_leaves_out_what_is_slower_and_later() -> None:
    found = Sweep(tuple(POINTS), POINTS[2], None)
    assert sorted(setting.batch for setting in found.frontier()) == [1, 2, 4, 8]


def test_larger_batches_are_left_out_when_they_gain_nothing_or_take_too_long() -> None:
    rates = {1: 50.0, 2: 100.0, 4: 101.0, 8: 100.0, 16: 300.0}

    def one(setting: Setting) -> Point:
        return point(setting.batch, rates[setting.batch], 10.0 * setting.batch)

    batches = [found.setting.batch for found in sweep._by_batch(one, Runtime.ONNXRUNTIME, 1, None)]
    assert batches == [1, 2, 4, 8]
    batches = [found.setting.batch for found in sweep._by_batch(one, Runtime.ONNXRUNTIME, 1, 15.0)]
    assert batches == [1, 2]


def test_sweep_measures_every_installed_setting_and_is_recalled_for_this_package_only(
    tiny: TinyWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tiny.package
    assert sweep_record.recall(package) is None
    found = sweep.sweep(package, Runtime.ONNXRUNTIME, None, seconds=0.02)
    measured = [each.setting for each in found.points]
    assert len(set(measured)) == len(measured) >= 3
    assert {setting.instances for setting in measured} == set(sweep._instances())
    assert all(each.throughput > 0 and each.latency_ms > 0 for each in found.points)
    path = sweep_record.remember(package, found)
    assert sweep_record.recall(package) == (found.best.setting, path)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["model_sha256"] == package.digest
    assert len(written["points"]) == len(measured)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(hardware, "cpu_name", lambda: "another CPU")
        assert sweep_record.recall(package) is None
    write_package(tiny.folder, float32_model(seed=7))
    assert sweep_record.recall(tiny.package) is None


@pytest.mark.parametrize("content", ["", "{}", '{"best": {"setting": {"runtime": "x", "batch": 1, "instances": 1}}}'])
def test_recall_names_a_damaged_file(tiny: TinyWorkspace, content: str) -> None:
    path = sweep_record._path(tiny.package)
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"\.json: invalid record of a sweep; delete it"):
        sweep_record.recall(tiny.package)


def test_bench_takes_what_the_sweep_found_unless_it_is_told(tiny: TinyWorkspace, command: Command) -> None:
    prefix = str(tiny.prefix)
    code, printed, _ = command("bench", "-m", prefix, "--sweep", "--runtime", "onnxruntime", "--duration", "0.02")
    assert code == 0, printed
    recalled = sweep_record.recall(tiny.package)
    assert recalled is not None
    best = recalled[0].flags()
    assert f"best: {best}: " in printed
    _, printed, _ = command("bench", "-m", prefix, "--iterations", "4")
    assert f"note: {best}, which --sweep found best here (" in printed
    _, printed, _ = command("bench", "-m", prefix, "--iterations", "4", "-b", "2")
    assert "--sweep" not in printed


@pytest.mark.parametrize("flags", [("-b", "2"), ("--iterations", "3"), ("--reference",), ("-p", "2")])
def test_sweep_refuses_flags_that_it_would_not_heed(
    tiny: TinyWorkspace, command: Command, flags: tuple[str, ...]
) -> None:
    code, _, errors = command("bench", "-m", str(tiny.prefix), "--sweep", *flags)
    assert code == 2
    assert errors.startswith("error: --sweep: chooses the load and runs nothing else; leave --")


def test_max_latency_without_sweep_is_an_error(tiny: TinyWorkspace, command: Command) -> None:
    code, _, errors = command("bench", "-m", str(tiny.prefix), "--max_latency", "5")
    assert (code, errors) == (2, "error: --max_latency: is a limit for --sweep; add that, or leave it out\n")


def test_recall_works_with_the_runtime_of_another_distribution(
    tiny: TinyWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    path = sweep_record.remember(tiny.package, Sweep(tuple(POINTS), POINTS[2], None))
    assert sweep_record.recall(tiny.package) == (POINTS[2].setting, path)
