"""How much commands say, and in which form: the results stay the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_fixtures import IMAGES, TinyWorkspace

from pipeline.commands.cli import main
from pipeline.config.build_config import BuildConfig
from pipeline.terminal import console

MakeConfig = Callable[..., BuildConfig]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Return a function that runs a command: exit code, standard output, standard error."""

    def run_it(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    yield run_it
    console.configure()


@pytest.fixture
def build_file(make_config: MakeConfig, tmp_path: Path) -> Path:
    make_config()
    return tmp_path / "tiny.yaml"


def events(err: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in err.splitlines()]


@pytest.mark.slow
def test_quiet_build_prints_its_result_alone(build_file: Path, run: Run) -> None:
    code, out, err = run("build", build_file, "--quiet")
    assert (code, err) == (0, "")
    assert out.startswith("int8 6 of 7 layers, ")
    assert len(out.splitlines()) == 4


@pytest.mark.slow
def test_verbose_build_says_where_artefacts_lie(build_file: Path, run: Run, tmp_path: Path) -> None:
    code, out, err = run("build", build_file, "--verbose")
    assert code == 0
    lines = [line for line in err.splitlines() if line.startswith("  [")]
    assert len(lines) == 12
    for line in lines:
        folder = Path(line.partition(": ")[2])
        assert folder.is_dir()
        assert folder.is_relative_to(tmp_path / "workspace" / ".cache")
    assert re.search(r"^\[1/12\] calibset: [\d.]+ s; ", out, re.MULTILINE)


@pytest.mark.slow
def test_log_json_build_is_events_and_a_result(build_file: Path, run: Run) -> None:
    code, out, err = run("build", build_file, "--log-json")
    assert code == 0
    assert len(out.splitlines()) == 4
    found = events(err)
    steps = [event["text"] for event in found if event["event"] == "step"]
    assert str(steps[0]).startswith("[1/12] calibset: ")
    calibrated = [event for event in found if event["event"] == "progress" and event["what"] == "calibrate"]
    assert (calibrated[-1]["done"], calibrated[-1]["total"], calibrated[-1]["unit"]) == (20, 20, "img")
    assert all(str(event["time"]).endswith("+00:00") for event in found)


def test_log_json_fault_is_an_event_a_line(run: Run, in_workspace: TinyWorkspace) -> None:
    code, out, err = run("bench", "-m", "none/none", "--log-json")
    assert (code, out) == (2, "")
    (event,) = events(err)
    assert event["event"] == "error"
    assert str(event["text"]).startswith("-m none/none: no package there")


def test_quiet_fault_is_said(run: Run, in_workspace: TinyWorkspace) -> None:
    code, out, err = run("bench", "-m", "none/none", "--quiet")
    assert (code, out) == (2, "")
    assert err.startswith("error: -m none/none: no package there")


def test_quiet_bench_and_eval_print_results_without_progress(run: Run, in_workspace: TinyWorkspace) -> None:
    code, out, err = run("bench", "-b", 4, "--iterations", 3, "--quiet")
    assert (code, err) == (0, "")
    assert "performance: " in out
    code, out, err = run("eval", "--result_path", "output", "--quiet")
    assert (code, err) == (0, "")
    assert f"{IMAGES} images, predicted by " in out


def test_verbose_bench_says_how_the_model_was_opened(run: Run, in_workspace: TinyWorkspace) -> None:
    _, _, err = run("bench", "-b", 4, "--iterations", 3, "--runtime", "onnxruntime", "--verbose")
    (line,) = [line for line in err.splitlines() if "opened" in line][:1]
    assert str(in_workspace.package.model.name) in line
    assert "for 4 images" in line


def test_verbose_shows_where_an_error_came_from(run: Run, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "manifest.json").write_text("{no", encoding="utf-8")
    command = ("package", "-m", tmp_path / "package" / "x", "--format", "ort", "--out", tmp_path / "out")
    code, _, err = run(*command)
    assert (code, len(err.splitlines())) == (2, 1)
    code, _, verbose = run(*command, "--verbose")
    assert code == 2
    assert verbose.startswith(err)
    lines = verbose.splitlines()[1:]
    assert all(line.startswith("  ") for line in lines)
    assert [line.strip() for line in lines if line.strip() in ("caused by:", "Traceback (most recent call last):")] == [
        *("Traceback (most recent call last):", "caused by:", "Traceback (most recent call last):"),
    ]
    assert "json.decoder.JSONDecodeError" in lines[-1]


def test_quiet_and_verbose_exclude_each_other(run: Run) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("models", "--quiet", "--verbose")
    assert stopped.value.code == 2
