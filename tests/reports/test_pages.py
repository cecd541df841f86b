"""reports/: pages that are whole in themselves and say what the commands say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import FinishedBuild
from PIL import Image
from run_fixtures import TinyWorkspace

from pipeline.commands.cli import main
from pipeline.config.build_config import BuildConfig
from pipeline.data import npz
from pipeline.measure import bench
from pipeline.measure.evaluate import evaluate
from pipeline.measure.load import Load
from pipeline.packages.package import THRESHOLDS, open_package
from pipeline.quant.rounding import read_rounded
from pipeline.reports import markup
from pipeline.reports import sweep as reports_sweep
from pipeline.run import sweep, sweep_record
from pipeline.run.results import read_run
from pipeline.runtimes.base import Runtime
from pipeline.terminal.counts import counted

MakeConfig = Callable[..., BuildConfig]

VOID = {"meta", "br", "img", "line", "circle", "polyline", "polygon", "rect"}


class Page(HTMLParser):
    """Checks that tags are closed in turn; keeps addresses and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID or tag == "circle":
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def out(tiny: TinyWorkspace, tmp_path: Path) -> Path:
    """Results of which every third has another answer than the package gave."""
    load = Load(batch=4, instances=2, runtime=Runtime.ONNXRUNTIME)
    folder = tmp_path / "output"
    bench.run_accuracy(tiny.package, load, tiny.package.preprocess(), tiny.datalist, folder)
    for sample in read_run(folder, None).entries[::3]:
        npz.write_result_npz(sample.result, np.roll(npz.read_result_npz(sample.result), 1, axis=1))
    return folder


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INT8_PIPELINE_CACHE", str(tmp_path / "cache"))


def test_report_says_what_the_evaluation_says_and_loads_nothing(
    tiny: TinyWorkspace, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["eval", "--result_path", str(out), "--report", str(page)]) == 0
    assert capsys.readouterr().out.endswith(f"report in {page}\n")
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    assert all(address.startswith("data:image/jpeg;base64,") for address in parsed.addresses)
    assert not re.search(r"https?://|@import|<script", text)
    evaluation = evaluate(out)
    assert evaluation.reference is not None
    words = " ".join(parsed.words)
    assert f"{evaluation.top1.percent:.2f}% (" in words
    assert f"{counted(len(evaluation.reference.flips), 'answer')} changed" in words
    assert len(parsed.addresses) == len(evaluation.reference.flips) > 0
    assert tiny.package.digest in words
    assert "Sample weights, sample images" in words


def test_report_draws_the_curve_of_a_sweep(tiny: TinyWorkspace, out: Path, tmp_path: Path) -> None:
    points = [sweep.Point(sweep.Setting("openvino", batch, 2), 100.0 + batch, 10.0 * batch) for batch in (1, 2, 4)]
    sweep_record.remember(tiny.package, sweep.Sweep(tuple(points), points[1], None))
    assert main(["eval", "--result_path", str(out), "--report", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    Page(text)
    assert text.count("<circle") == 3
    assert "--runtime openvino -b 4 -i 2: 104.0 images/s, 40.0 ms" in text


def test_report_shows_names_as_they_are_and_no_markup_of_theirs(tiny: TinyWorkspace, out: Path, tmp_path: Path) -> None:
    names = [f"<b>class & {index}</b>" for index in range(6)]
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    arguments = ["eval", "--result_path", str(out), "--label", str(tmp_path / "names.txt")]
    assert main([*arguments, "--report", str(tmp_path / "page.html")]) == 0
    assert "<b>class" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_report_that_cannot_be_written_is_an_error_in_a_line(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["eval", "--result_path", str(out), "--report", str(tmp_path / "file" / "page.html")]) == 2
    assert "--report" in capsys.readouterr().err


@pytest.mark.slow
def test_page_of_a_build_shows_each_layer_and_activation(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_config()
    page = tmp_path / "build.html"
    assert main(["build", str(tmp_path / "tiny.yaml"), "--report", str(page)]) == 0
    assert capsys.readouterr().out.endswith(f"report in {page}\n")
    text = page.read_text(encoding="utf-8")
    words = " ".join(Page(text).words)
    assert not re.search(r"https?://|@import|<script", text)
    package = open_package(tmp_path / "workspace" / "tiny-int8-percentile-3_32_32-vacc")
    ranges = json.loads((package.folder / THRESHOLDS).read_text(encoding="utf-8"))
    assert text.count("<polygon") == len(ranges) > 5
    for name, bounds in ranges.items():
        assert name in words
        assert f"kept {bounds['low']:.3g} to {bounds['high']:.3g}" in words
    (cache,) = (tmp_path / "workspace" / ".cache" / "round").glob("[0-9a-f]*/weights.npz")
    layers = read_rounded(cache)
    assert len(layers) == 7
    for name, layer in layers.items():
        assert name in words
        assert f"{layer.sqnr_db:.1f} dB" in words
    assert package.digest in words
    main(["build", str(tmp_path / "tiny.yaml"), "--report", str(page)])
    assert page.read_text(encoding="utf-8").count("up to date") == 12  # every stage of a build without a search


def test_thresholds_stand_where_they_are_in_the_histogram() -> None:
    drawing = markup.histogram([0, 10, 100, 1], -1.0, 3.0, [0.0, 2.0])
    width, height = markup._HISTOGRAM
    places = [float(place) for place in re.findall(r'<rect x="([0-9]+)"', drawing)]
    assert places == pytest.approx([width / 4, 3 * width / 4], abs=markup._MARK)
    tops = [float(pair.split(",")[1]) for pair in re.findall(r"[0-9.]+,[0-9.]+", drawing)]  # of the outline
    assert min(tops) == 0.0  # the fullest bin reaches the top
    assert max(tops) == height


def test_page_of_a_sweep_has_every_setting(
    in_workspace: TinyWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "BATCHES", (1, 4))
    page = tmp_path / "sweep.html"
    arguments = ["bench", "--sweep", "--runtime", "onnxruntime", "--duration", "0.1", "--report", str(page)]
    assert main([*arguments, "--json", str(tmp_path / "sweep.json")]) == 0
    text = page.read_text(encoding="utf-8")
    words = Page(text).words
    points = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["points"]
    assert text.count("<circle") == len(points) >= 2
    assert words.count("onnxruntime") >= len(points)


def test_report_without_a_sweep_is_refused(in_workspace: TinyWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--report", "page.html"]) == 2
    assert "--report: works only with --sweep" in capsys.readouterr().err


def screenshot(page: Path) -> npt.NDArray[np.uint8]:
    """Return what Chromium shows of a page, uint8 [H, W, 3]."""
    found = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no Chromium here")
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    image = page.with_suffix(".png")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet, "--window-size=1000,3000"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [found, *flags, profile, f"--screenshot={image}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return np.asarray(Image.open(image).convert("RGB"))


def drawn(shown: npt.NDArray[np.uint8], colour: str) -> int:
    """Return how many pixels have a colour, #rrggbb."""
    wanted = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)])
    return int((shown == wanted).all(axis=2).sum())


@pytest.mark.slow
def test_browser_shows_histograms_with_thresholds(make_config: MakeConfig, tmp_path: Path) -> None:
    make_config()
    assert main(["build", str(tmp_path / "tiny.yaml"), "--report", str(tmp_path / "build.html"), "--quiet"]) == 0
    shown = screenshot(tmp_path / "build.html")
    assert drawn(shown, "#9db8d2") > 5000
    assert drawn(shown, "#b3261e") > 200


@pytest.mark.slow
def test_browser_shows_flips_and_the_curve(tiny: TinyWorkspace, out: Path, tmp_path: Path) -> None:
    points = [sweep.Point(sweep.Setting("openvino", batch, 2), 100.0 + batch, 10.0 * batch) for batch in (1, 2, 4)]
    found = sweep.Sweep(tuple(points), points[1], None)
    sweep_record.remember(tiny.package, found)
    assert main(["eval", "--result_path", str(out), "--report", str(tmp_path / "page.html")]) == 0
    shown = screenshot(tmp_path / "page.html")
    assert drawn(shown, markup._COLOURS["openvino"]) > 100
    # Images in colour: hundreds of hues where text and lines have few.
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 1000
    reports_sweep.write(tiny.package, found, tmp_path / "sweep.html")
    assert drawn(screenshot(tmp_path / "sweep.html"), markup._COLOURS["openvino"]) > 100


@pytest.mark.slow
def test_page_and_lines_of_a_build_show_a_verdict_that_is_not_good(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_config()
    page = tmp_path / "build.html"
    clipped = ["--set", "backend.quantize.percentile=90"]
    assert main(["build", str(tmp_path / "tiny.yaml"), *clipped, "--report", str(page)]) == 0
    advice = "the ranges clip too much of the activations: raise backend.quantize.percentile (now 90) or set"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("suspicious: ")]
    assert re.search(r"^suspicious: 11\.\d dB, KL 0\.\d+, \d+/20 answers beside float32 in exact arithmetic: ", line)
    assert advice in line
    text = page.read_text(encoding="utf-8")
    Page(text)
    assert f'<p class="bad">{markup.text(line)}</p>' in text
    assert text.index('class="bad"') < text.index("<h2>")


def test_page_of_a_sound_build_shows_figures_of_every_runtime(finished: FinishedBuild, tmp_path: Path) -> None:
    page = tmp_path / "build.html"
    assert main(["build", str(finished.file), "--report", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert 'class="bad"' not in text
    proven = finished.package.report()["proof"]
    for name, each in proven["runtimes"].items():
        figures = each["float32"]
        assert f"<td>{name}</td><td>good</td><td>20 of 20</td><td>{figures['sqnr_db']:.1f} dB</td>" in text
        assert f"<td>{each['executed']['int8']} of {each['executed']['weighted']}</td>" in text
