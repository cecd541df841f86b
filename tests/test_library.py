"""`import pipeline`: the examples of docs/python.md and of every public docstring, run on a real package."""

from __future__ import annotations

import doctest
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from conftest import CLASSES, SIDE
from PIL import Image

import pipeline
from pipeline.errors import DataError
from pipeline.terminal import console

ROOT = Path(__file__).parents[1]
FLOWERS = ("daisy", "rose", "sunflower", "tulip")
EVALUATED = 8  # images


@pytest.fixture(scope="module")
def flowers_master(tmp_path_factory: pytest.TempPathFactory, image_tree_master: Path, tiny_onnx: Path) -> Path:
    """A folder with a network, images of four classes, a build file and two photos; later with the package too."""
    root = tmp_path_factory.mktemp("flowers")
    shutil.copy(tiny_onnx, root / "flowers.onnx")
    for name, source in zip(FLOWERS, CLASSES, strict=True):
        for number, image in enumerate(sorted((image_tree_master / source).iterdir())):
            target = root / ("val" if number < EVALUATED // len(FLOWERS) else "train") / name / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, target)
    (root / "photos").mkdir()
    shutil.copy(root / "val/rose/n90000002_0.JPEG", root / "photos/rose.jpg")
    with Image.open(root / "val/tulip/n90000004_1.JPEG") as tulip:
        tulip.save(root / "photos/tulip.png")
    values = {
        "name": "flowers",
        "frontend": {"type": "onnx", "checkpoint": "flowers.onnx", "shape": {"input": [1, 3, SIDE, SIDE]}},
        "backend": {"quantize": {"calibrate_mode": "percentile"}},
        "dataset": {
            "path": "train",
            "sampler": {"get_data_num": 16},
            "process_ops": [
                {"type": "DecodeImage"},
                {"type": "Resize", "size": 36},
                {"type": "CenterCrop", "crop_size": SIDE},
                {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
                {"type": "ToTensor"},
            ],
        },
        "evaluation": {"path": "val", "num": EVALUATED},
    }
    (root / "flowers.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return root


@pytest.fixture
def flowers(flowers_master: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as current folder, with the package built."""
    monkeypatch.chdir(flowers_master)
    monkeypatch.setattr(console, "_style", console._Style())  # as it is where no command ran
    pipeline.build(pipeline.load_build_file("flowers.yaml"))
    return flowers_master


def code_of(page: Path) -> str:
    """Return the Python of a page, blank lines in place of the rest, so that line numbers are those of the page."""
    kept, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside, line = line == "```python", ""
        kept.append(line if inside else "")
    return "\n".join(kept)


@pytest.mark.slow
def test_page_runs_as_it_is_written(flowers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = ROOT / "docs" / "python.md"
    names: dict[str, object] = {}
    exec(compile(code_of(page), str(page), "exec"), names)
    said = capsys.readouterr()
    assert (names["rose"].labels[0], names["tulip"].labels[0]) == ("rose", "tulip")  # type: ignore[attr-defined]
    assert names["rose_again"].class_ids == names["rose"].class_ids  # type: ignore[attr-defined]
    assert names["bad"] == ["photos/none.jpg"]
    report = json.loads(str(names["report"]))
    assert report["accuracy"]["int8"]["top1"]["count"] == EVALUATED
    assert report["speed"]["load"]["batch"] == 4
    assert report["build"]["prefix"] == "deploy_weights/flowers-int8-percentile-3_32_32-vacc/flowers"
    assert "photos/tulip.png tulip 0." in said.out
    assert "change in top-1 " in said.out
    assert "no package there" in said.out
    assert said.err == ""


@pytest.mark.parametrize("name", ["pipeline", *(name for name in pipeline.__all__ if not name.startswith("_"))])
def test_docstring_has_an_example_that_runs(flowers: Path, name: str) -> None:
    shutil.rmtree(flowers / "output", ignore_errors=True)
    shutil.rmtree(flowers / "output.run.json", ignore_errors=True)
    thing = pipeline if name == "pipeline" else getattr(pipeline, name)
    names = {"pipeline": pipeline}
    examples = doctest.DocTestParser().get_doctest(inspect.getdoc(thing) or "", names, name, None, 0)
    assert examples.examples
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(examples, out=said.append).failed == 0, "".join(said)


def test_public_names_are_these_and_importing_them_costs_nothing() -> None:
    assert sorted(pipeline.__all__) == [
        "BenchOptions",
        "Classifier",
        "PipelineError",
        "Prediction",
        "__version__",
        "bench",
        "build",
        "evaluate",
        "load_build_file",
        "open_package",
    ]
    assert set(pipeline.__all__) <= set(dir(pipeline))
    assert issubclass(DataError, pipeline.PipelineError)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", pipeline.__version__)
    with pytest.raises(AttributeError, match="no attribute 'Classifer'"):
        _ = pipeline.Classifer
    code = "import pipeline, sys; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    "first",
    [
        "pipeline.commands.build",
        pytest.param("pipeline.commands.cli", marks=pytest.mark.slow),
        pytest.param("pipeline.measure.bench", marks=pytest.mark.slow),
    ],
)
def test_public_functions_are_not_hidden_by_modules_of_their_names(first: str) -> None:
    code = (
        f"import {first}, pipeline, pipeline.measure.evaluate; print(pipeline.build, pipeline.bench, pipeline.evaluate)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"(<function (build|bench|evaluate) at \w+> ?){3}\n", done.stdout)


@pytest.mark.slow
def test_build_says_nothing_unless_it_is_asked_to(flowers: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    built = pipeline.build(pipeline.load_build_file("flowers.yaml", ["backend.quantize.percentile=99.9"]), said.append)
    assert capfd.readouterr() == ("", "")
    assert any(line.startswith("[") and "quantize: " in line for line in said)
    assert json.loads(json.dumps(built.as_dict()))["ran"][0] == "thresholds"


def test_bench_result_has_a_speed_when_one_was_measured(flowers: Path) -> None:
    compared = pipeline.bench(options=pipeline.BenchOptions(iterations=4, batch=2, reference=True))
    assert compared.comparison is not None
    assert compared.speed is compared.comparison.package[-1]
    assert compared.performance is None
    answered = pipeline.bench(options=pipeline.BenchOptions(speed=False, results="speedless"))
    with pytest.raises(ValueError, match="speed was not measured"):
        _ = answered.speed


def test_runtimes_write_nothing_to_the_home_folder_and_have_their_telemetry_off(tmp_path: Path) -> None:
    """In a process of its own: what ONNX Runtime does is settled when it is loaded."""
    code = "import pipeline, pipeline.runtimes.ort, pipeline.runtimes.ov"
    settled = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "CIRCLECI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in settled}
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=ROOT, env={**environment, "HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.rglob("*")) == []


def test_build_and_load_build_file_say_what_they_take_when_given_something_else(flowers: Path) -> None:
    with pytest.raises(TypeError, match=r"^cfg: expected what load_build_file returns, got str$"):
        pipeline.build("flowers.yaml")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^overrides: expected a list of 'section\.key=value', got str$"):
        pipeline.load_build_file("flowers.yaml", "backend.quantize.percentile=99.9")
    with pytest.raises(TypeError, match=r"^overrides: .*, got dict$"):
        pipeline.load_build_file("flowers.yaml", {"backend.quantize.percentile": 99.9})  # type: ignore[arg-type]


def test_results_are_frozen_and_without_the_methods_of_other_modules(flowers: Path) -> None:
    found = pipeline.bench(options=pipeline.BenchOptions(iterations=2, batch=1))
    with pytest.raises(AttributeError):
        found.performance = None  # type: ignore[misc]
    public = {name for name in dir(pipeline.Classifier) if not name.startswith("_")}
    assert public == {"close", "predict"}
    assert not isinstance(pipeline.bench, ModuleType)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed")
def test_page_passes_mypy(tmp_path: Path) -> None:
    code = code_of(ROOT / "docs" / "python.md").replace("bad = []", "bad: list[str] = []")
    (tmp_path / "page.py").write_text(code, encoding="utf-8")
    flags = ["--strict", "--config-file", ROOT / "pyproject.toml", "--cache-dir", tmp_path / "cache"]
    command = [sys.executable, "-m", "mypy", *map(str, flags), "--follow-imports", "silent", str(tmp_path / "page.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
