from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import FinishedBuild
from run_fixtures import IMAGES, SPEC, TinyWorkspace

from pipeline.config.choices import PreprocessAs
from pipeline.config.vdsp import ColourOrder, PreprocessSpec, ResizeFilter, to_vdsp_dict
from pipeline.data import npz
from pipeline.errors import ConfigError, DataError
from pipeline.measure import bench
from pipeline.measure.bench_options import BenchOptions
from pipeline.measure.bench_result import BenchResult, describe
from pipeline.measure.load import Load
from pipeline.run.plan import Limit
from pipeline.run.results import read_run
from pipeline.runtimes.base import Runtime


def load(**changes: object) -> Load:
    return Load(**{"runtime": Runtime.ONNXRUNTIME, **changes})  # type: ignore[arg-type]


def write_vdsp(path: Path, base: PreprocessSpec = SPEC, **changes: object) -> str:
    path.write_text(json.dumps(to_vdsp_dict(PreprocessSpec(**{**vars(base), **changes}))))
    return str(path)


@pytest.mark.parametrize("processes", [1, 2])
def test_run_performance_counts_the_iterations_exactly(tiny: TinyWorkspace, processes: int) -> None:
    figures = bench.run_performance(
        tiny.package, load(batch=4, instances=3, processes=processes), SPEC, Limit(iterations=9)
    )
    assert figures.images == 36
    assert figures.images / figures.throughput == pytest.approx(figures.seconds, abs=0.0006)  # rounded to ms
    assert len(figures.workers) == processes
    assert sum(worker["streams"] for worker in figures.workers) <= 3
    assert figures.stage_seconds is None


def test_run_performance_keeps_to_the_duration(tiny: TinyWorkspace) -> None:
    figures = bench.run_performance(tiny.package, load(batch=8, instances=8), SPEC, Limit(duration_s=0.4))
    assert 0.3 < figures.seconds < 2
    assert figures.images % 8 == 0
    assert figures.throughput == pytest.approx(figures.images / figures.seconds, rel=0.01)
    ranks = [figures.latency_ms[name] for name in ("min", "p50", "p90", "p95", "p99", "max")]
    assert ranks == sorted(ranks)
    # Little's law: on average at most as many requests are in flight as -i says; fewer where the machine paused.
    assert 1 < figures.latency_ms["mean"] / 1e3 * figures.throughput / 8 < 8.5


def test_run_accuracy_writes_a_result_a_sample_and_says_what_it_ran(tiny: TinyWorkspace, tmp_path: Path) -> None:
    package = tiny.package
    figures = bench.run_accuracy(package, load(batch=5, instances=2), SPEC, tiny.datalist, tmp_path / "out")
    assert figures is not None
    assert figures.images == IMAGES
    assert figures.stage_seconds is not None
    assert list(figures.stage_seconds) == ["read", "preprocess", "infer", "write"]
    run = read_run(tmp_path / "out", tiny.images)
    assert len(run.entries) == IMAGES
    expected = {
        "package": str(package.prefix),
        "model_sha256": package.digest,
        "sample": True,
        "runtime": "onnxruntime",
        "preprocess": to_vdsp_dict(SPEC),
        "datalist": str(tiny.datalist),
    }
    assert {**run.facts, **expected} == run.facts


def test_resolve_preprocess_notes_what_differs(tiny: TinyWorkspace, tmp_path: Path) -> None:
    assert bench.resolve_preprocess(tiny.package, None) == (SPEC, [])
    assert bench.resolve_preprocess(tiny.package, write_vdsp(tmp_path / "same.json")) == (SPEC, [])
    other = write_vdsp(tmp_path / "other.json", mean=(0.5, 0.5, 0.5))
    spec, notes = bench.resolve_preprocess(tiny.package, other)
    assert spec.mean == (0.5, 0.5, 0.5)
    text = "differs from the preprocessing the package was calibrated with: mean is [0.485, 0.456, 0.406] against"
    assert notes == [f"{other} {text} [0.5, 0.5, 0.5]"]
    with pytest.raises(DataError, match="prepares images of 30x30"):
        bench.resolve_preprocess(tiny.package, write_vdsp(tmp_path / "small.json", crop_hw=(30, 30)))


def test_resolve_preprocess_refuses_another_normalisation_than_that_in_the_model(
    finished: FinishedBuild, tmp_path: Path
) -> None:
    package = finished.package
    own = package.preprocess()
    given = write_vdsp(tmp_path / "same.json", own, filter=ResizeFilter.BILINEAR_PILLOW)
    assert bench.resolve_preprocess(package, given)[0].filter is ResizeFilter.BILINEAR_PILLOW
    for change in ({"mean": (0.5, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.5)}, {"colour": ColourOrder.BGR}):
        with pytest.raises(DataError, match=r"other\.json: other means, .* whose model holds them; build"):
            bench.resolve_preprocess(package, write_vdsp(tmp_path / "other.json", own, **change))


def test_check_shape_states_both(tiny: TinyWorkspace) -> None:
    bench.check_shape(tiny.package, None)
    bench.check_shape(tiny.package, [3, 32, 32])
    with pytest.raises(ConfigError) as raised:
        bench.check_shape(tiny.package, [3, 256, 256])
    assert str(raised.value) == (
        f"-s [3, 256, 256]: {tiny.prefix} takes [3, 32, 32]; leave -s out, or build at that size"
    )


@pytest.mark.parametrize(("name", "flag"), [("batch", "-b"), ("instances", "-i"), ("processes", "-p")])
@pytest.mark.parametrize("value", [0, -1, 1025])
def test_load_names_the_flag_that_is_out_of_range(name: str, flag: str, value: int) -> None:
    with pytest.raises(ConfigError) as raised:
        load(**{name: value})
    assert str(raised.value) == f"{flag}: must be in 1..1024, got {value}"


def test_report_is_plain_data(tiny: TinyWorkspace) -> None:
    package = tiny.package
    performance = bench.run_performance(package, load(batch=2), SPEC, Limit(iterations=4))
    found = json.loads(json.dumps(BenchResult(package=package, load=load(batch=2), performance=performance).as_dict()))
    assert found["load"] == {"batch": 2, "instances": 1, "processes": 1, "runtime": "onnxruntime"}
    assert found["performance"]["images"] == 8
    assert found["accuracy_run"] is None
    assert found["sample"] is True
    assert found["machine"]["cores"] >= 1


def test_describe_says_rate_latency_and_what_it_ran_on(tiny: TinyWorkspace, tmp_path: Path) -> None:
    figures = bench.run_accuracy(tiny.package, load(batch=5), SPEC, tiny.datalist, tmp_path / "out")
    assert figures is not None
    lines = describe(figures, "from npz to results")
    assert lines[0].startswith(f"from npz to results: {figures.throughput:.1f} images/s ({IMAGES} images in ")
    assert lines[1].startswith("latency of a request, ms: min ")
    assert "ran on onnxruntime" in lines[2]
    assert lines[3].startswith("thread seconds in: read ")


def test_bench_says_once_what_both_runs_ran_on(tiny: TinyWorkspace, tmp_path: Path) -> None:
    said: list[str] = []
    options = BenchOptions(runtime="onnxruntime", iterations=4, results=tmp_path / "out")
    bench.bench(tiny.package, options, say=said.append)
    lines = "\n".join(said).splitlines()
    assert [line.partition(":")[0] for line in lines if " images/s" in line] == ["performance", "from npz to results"]
    (ran_on,) = [line for line in lines if line.startswith("ran on")]
    assert ", 1 process, 1 stream, " in ran_on


def test_run_comparison_measures_both_models_in_turn(tiny: TinyWorkspace) -> None:
    compared = bench.run_comparison(tiny.package, load(batch=2), SPEC, Limit(iterations=6))
    assert [figures.images for figures in (*compared.package, *compared.float32)] == [12] * 6
    assert compared.ratios == [
        round(int8.throughput / float32.throughput, 3)
        for int8, float32 in zip(compared.package, compared.float32, strict=True)
    ]
    found = json.loads(
        json.dumps(BenchResult(package=tiny.package, load=load(batch=2), comparison=compared).as_dict())
    )["comparison"]
    assert found["median_ratio"] == sorted(found["ratios"])[1]
    assert f"int8 is {found['median_ratio']:.2f}x as fast" in str(compared)


def test_run_comparison_says_what_to_do_when_the_float32_model_is_gone(tiny: TinyWorkspace) -> None:
    model = tiny.package.workspace_file("float32_model")
    assert model is not None
    model.unlink()
    with pytest.raises(DataError) as raised:
        bench.run_comparison(tiny.package, load(), SPEC, Limit(iterations=1))
    assert str(raised.value) == (
        f"--reference: the float32 model of {tiny.prefix} is not here; build it on this machine"
    )


def test_run_accuracy_warns_where_images_were_decoded_as_by_another_library(
    tiny: TinyWorkspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for library, warns in ((PreprocessAs.TORCHVISION, False), (PreprocessAs.PADDLECLAS, True)):
        npz.write_image_npz(tmp_path / "a.npz", np.zeros((3, 40, 40), np.uint8), (10, 20), decoded_as=library)
        npz.write_datalist(tmp_path / "list.txt", [tmp_path / "a.npz"])
        bench.run_accuracy(tiny.package, load(), SPEC, tmp_path / "list.txt", tmp_path / library.value)
        said = capsys.readouterr().err
        assert ("decoded as by paddleclas, this package wants torchvision" in said) is warns
