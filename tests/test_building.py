"""The build from end to end on a tiny classifier: what runs, what is reused, what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import FinishedBuild
from onnx import TensorProto
from PIL import Image

from pipeline.artefacts import verify, write_manifest
from pipeline.building import build, check, plan
from pipeline.commands.cli import main
from pipeline.config.build_config import BuildConfig
from pipeline.config.build_file import load_build_file
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import prepared, preprocess
from pipeline.data.calibration_list import read_calibration_list
from pipeline.data.imagenet import list_dataset
from pipeline.data.labels import imagenet_classes
from pipeline.data.preprocess import Prepared
from pipeline.errors import ConfigError, DataError
from pipeline.host.hardware import available_cores
from pipeline.onnx_models import classifier
from pipeline.packages.package import open_package
from pipeline.quant.rounding import read_rounded
from pipeline.reports.summary import summarize
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import installed_runtimes, open_backend, place
from pipeline.weights import published

MakeConfig = Callable[..., BuildConfig]
StartPython = Callable[..., "subprocess.Popen[str]"]

ALL = (
    "calibset",
    "export",
    "pixels",
    "equalize",
    "arrange",
    "round",
    "calibrate",
    "thresholds",
    "place",
    "quantize",
    "prove",
    "package",
)
PACKAGE = "tiny-int8-percentile-3_32_32-vacc"


def quiet(line: str) -> None:
    """Take the lines of a build."""


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_build_makes_a_package_when_run_for_the_first_time(finished: FinishedBuild) -> None:
    built, lines = finished.built, finished.lines
    assert built.ran == ALL
    assert built.prefix == finished.workspace / PACKAGE / "tiny"
    # A line a step: its time, in words what it did, and the time that is left.
    assert [line.partition(":")[0] for line in lines] == [
        f"[{number}/{len(ALL)}] {name}" for number, name in enumerate(ALL, 1)
    ]
    assert all(
        re.search(r": \d+\.\d s(, [^;]+)?; (about \d+ (s|min)|a few seconds) left$", line) for line in lines[:-1]
    )
    assert re.fullmatch(r"\[12/12\] package: \d+\.\d s", lines[-1])
    calibrated = lines[ALL.index("calibrate")]
    assert re.fullmatch(r"\[\d+/12\] calibrate: \d+\.\d s, 20 images; .* left", calibrated)
    package = open_package(built.prefix)
    assert sorted(path.name for path in package.folder.iterdir()) == [
        *("build.json", "calibration.txt", "classes.tsv", "manifest.json", "package.json", "preprocess.json"),
        *("report.json", "thresholds.json", "tiny.onnx"),
    ]
    report = package.report()
    assert report["layers"] == {"weighted": 7, "quantized": 6}
    assert set(report["agreement"]) == {runtime.value for runtime in installed_runtimes()}
    assert all(counts["images"] == 20 and counts["agreeing"] >= 18 for counts in report["agreement"].values())
    float32 = package.workspace_file("float32_model")
    assert float32 is not None
    assert onnx.load(float32).graph.input[0].name == "input"
    last = summarize(built)
    assert last[0].startswith("int8 6 of 7 layers, 0.0 MB; same class as float32 on calibration images: ")
    assert last[1].startswith("logit SQNR against float32: ")
    assert last[2].startswith(f"package {built.prefix}   (")


def test_build_runs_nothing_when_everything_is_up_to_date(finished: FinishedBuild) -> None:
    before = content(finished.package.folder)
    lines: list[str] = []
    second = build(finished.config(), lines.append)
    assert second.ran == ()
    assert lines == [f"[{number}/{len(ALL)}] {name}: up to date" for number, name in enumerate(ALL, 1)]
    assert content(second.prefix.parent) == before


def test_plan_says_what_a_build_then_does(make_config: MakeConfig, tmp_path: Path, finished: FinishedBuild) -> None:
    before = plan(make_config())
    assert before[:-1] == [f"[{number}/{len(ALL)}] {name}: runs" for number, name in enumerate(ALL, 1)]
    assert before[-1] == f"package {tmp_path}/workspace/{PACKAGE}/tiny"
    assert not (tmp_path / "workspace").exists()
    after = plan(finished.config())
    assert after[:-1] == [f"[{number}/{len(ALL)}] {name}: up to date" for number, name in enumerate(ALL, 1)]
    assert after[-1] == f"package {finished.built.prefix}"
    changed = plan(finished.config("backend.quantize.percentile=99"))
    assert [line.split()[1].rstrip(":") for line in changed if line.endswith("runs")] == [
        *("thresholds", "place", "quantize", "prove", "package"),
    ]


def test_plan_fetches_nothing(monkeypatch: pytest.MonkeyPatch, make_config: MakeConfig) -> None:
    def fail(*_: object) -> Path:
        raise AssertionError("fetched")

    monkeypatch.setattr(published, "fetch", fail)
    cfg = make_config("frontend.type=torchvision", "frontend.model=resnet18", "frontend.checkpoint=auto")
    assert plan(cfg)[1] == f"[2/{len(ALL)}] export: fetches the checkpoint and runs"


def test_dry_run_prints_a_file_that_builds_the_same(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_config()
    assert main(["build", str(tmp_path / "tiny.yaml"), "--dry-run", "--set", "backend.quantize.percentile=99.5"]) == 0
    printed = capsys.readouterr().out
    assert "# [1/12] calibset: runs" in printed
    assert not (tmp_path / "workspace").exists()
    (tmp_path / "printed.yaml").write_text(printed, encoding="utf-8")
    resolved = load_build_file(tmp_path / "printed.yaml")
    assert resolved.as_dict() == make_config("backend.quantize.percentile=99.5").as_dict()


@pytest.mark.slow
def test_build_runs_nothing_when_only_measured_times_differ(make_config: MakeConfig, tmp_path: Path) -> None:
    build(make_config(), quiet)
    (figures,) = (tmp_path / "workspace" / ".cache" / "calibrate").glob("*/figures.json")
    figures.write_text('{"seconds": 12345.6}', encoding="utf-8")
    write_manifest(figures.parent, "calibrate")
    assert build(make_config(), quiet).ran == ()


def test_build_restores_the_package_when_a_file_of_it_was_changed_or_removed(
    finished: FinishedBuild, tmp_path: Path
) -> None:
    cfg = finished.copied_config(tmp_path / "copy")
    built = build(cfg, quiet)
    assert built.ran == ("package",)  # which has the path of the workspace in it
    before = content(built.prefix.parent)
    (built.prefix.parent / "tiny.onnx").write_bytes(b"damaged")
    (built.prefix.parent / "classes.tsv").unlink()
    assert build(cfg, quiet).ran == ()
    assert content(built.prefix.parent) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "reruns"),
    [
        ("backend.quantize.percentile=99.0", ("thresholds", "place", "quantize", "prove", "package")),
        # So few values that 99.9999% of them are all: the same thresholds, hence the same model.
        ("backend.quantize.percentile=100", ("thresholds", "package")),
        (
            "backend.quantize.quantize_per_channel=false",
            ("round", "calibrate", "place", "quantize", "prove", "package"),
        ),
        ("backend.quantize.exclude_layers=[0]", ("place", "quantize", "prove", "package")),
        ("backend.quantize.weight_rounding=nearest", ("calibrate", "place", "quantize", "prove", "package")),
        ("backend.quantize.equalization=false", ALL[4:]),
        ("backend.quantize.pixel_input=false", ALL[3:]),
        ("graph.extra_ops.type=softmax", ALL[1:]),
        ("dataset.sampler.get_data_num=16", ALL),
        ("name=other", ("package",)),
    ],
)
def test_build_reruns_only_what_depends_on_it_when_a_key_changes(
    make_config: MakeConfig, override: str, reruns: tuple[str, ...]
) -> None:
    before = content(build(make_config(), quiet).prefix.parent)
    after = build(make_config(override), quiet)
    assert after.ran == reruns
    assert content(after.prefix.parent) != before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "skipped"),
    [
        (("backend.quantize.pixel_input=false",), {"pixels"}),
        (("backend.quantize.equalization=false",), {"equalize"}),
        (("backend.quantize.weight_rounding=nearest",), {"round"}),
        (("backend.quantize.equalization=false", "backend.quantize.weight_rounding=nearest"), {"equalize", "round"}),
    ],
)
def test_build_skips_a_tool_when_it_is_off(
    make_config: MakeConfig, tmp_path: Path, overrides: tuple[str, ...], skipped: set[str]
) -> None:
    lines: list[str] = []
    built = build(make_config(*overrides), lines.append)
    ran = tuple(name for name in ALL if name not in skipped)
    assert built.ran == ran
    assert [line.partition(":")[0] for line in lines] == [
        f"[{number}/{len(ran)}] {name}" for number, name in enumerate(ran, 1)
    ]
    (check_file,) = (tmp_path / "workspace" / ".cache" / "quantize").glob("*/check.json")
    found = json.loads(check_file.read_text(encoding="utf-8"))
    assert found["layers"]["quantized"] >= 6  # all convolutions
    assert found["rounded_weights"] == (0 if "round" in skipped else found["layers"]["quantized"])


def test_build_installs_the_weights_that_were_rounded(finished: FinishedBuild) -> None:
    (folder,) = (path for path in (finished.workspace / ".cache" / "round").iterdir() if path.is_dir())
    rounded = read_rounded(folder / "weights.npz")
    model = onnx.load(finished.package.model)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {made: node for node in model.graph.node for made in node.output}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm") and node.input[1] in makers]
    assert len(layers) == finished.package.report()["layers"]["quantized"] >= 6
    for node in layers:
        weights = stored[makers[node.input[1]].input[0]]
        np.testing.assert_array_equal(weights.reshape(len(weights), -1), rounded[node.name].weights)


@pytest.mark.slow
def test_build_leaves_the_named_layers_in_float_when_layers_are_excluded(
    finished: FinishedBuild, tmp_path: Path
) -> None:
    cfg = finished.copied_config(tmp_path / "copy", "backend.quantize.exclude_layers=[0, 6]")
    built = build(cfg, quiet)
    assert built.ran == ("place", "quantize", "prove", "package")
    assert open_package(built.prefix).report()["layers"] == {"weighted": 7, "quantized": 5}


@pytest.mark.slow
def test_build_recalibrates_nothing_when_images_are_touched_but_equal(
    make_config: MakeConfig, image_tree: Path
) -> None:
    build(make_config(), quiet)
    for image in image_tree.rglob("*.JPEG"):
        os.utime(image, (1, 1))
    assert build(make_config(), quiet).ran == ("calibset",)


@pytest.mark.slow
def test_build_recalibrates_when_the_content_of_an_image_changes(make_config: MakeConfig, image_tree: Path) -> None:
    cfg = make_config("dataset.sampler.get_data_num=24")
    build(cfg, quiet)
    image = next(image_tree.rglob("*_3.JPEG"))
    with Image.open(image) as opened:
        rotated = opened.rotate(180)
    rotated.save(image, quality=95)
    assert build(cfg, quiet).ran == ALL


@pytest.mark.slow
def test_build_exports_again_when_the_checkpoint_changes(
    make_config: MakeConfig, tiny_model: onnx.ModelProto, tmp_path: Path
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(tiny_model)
    path = tmp_path / "changing.onnx"
    onnx.save(model, path, save_as_external_data=True, location="changing.data", size_threshold=0)
    cfg = make_config(f"frontend.checkpoint={path}")
    build(cfg, quiet)
    assert build(cfg, quiet).ran == ()
    graph_before = path.read_bytes()
    weights = bytearray((tmp_path / "changing.data").read_bytes())
    weights[0] ^= 1  # the last bit of one weight
    (tmp_path / "changing.data").write_bytes(weights)
    assert path.read_bytes() == graph_before
    assert build(cfg, quiet).ran[0] == "export"


def test_build_refuses_a_collapsed_model_and_leaves_no_package_when_the_percentile_is_too_low(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        build(make_config("backend.quantize.percentile=50.1"), quiet)
    agreeing = str(caught.value).partition(" of 20 ")[0].rpartition(" ")[2]
    assert int(agreeing) < 10
    assert str(caught.value) == (
        f"the int8 model collapsed: in exact arithmetic it gives the answer of float32 on {agreeing} of 20 calibration "
        "images, -1.0 dB; the ranges clip too much of the activations: raise backend.quantize.percentile (now 50.1) or "
        "set calibrate_mode: max"
    )
    workspace = tmp_path / "workspace"
    assert [path.name for path in workspace.iterdir()] == [".cache"]
    assert not [path for path in (workspace / ".cache" / "prove").iterdir() if path.is_dir()]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["kl_divergence", "mse", "max"])
def test_build_repeats_nothing_before_the_thresholds_when_the_mode_changes(make_config: MakeConfig, mode: str) -> None:
    build(make_config(), quiet)
    other = build(make_config(f"backend.quantize.calibrate_mode={mode}"), quiet)
    # Where the mode gives the same ranges, as percentile and max do on few values, the model is up to date too.
    assert other.ran in (("thresholds", "place", "quantize", "prove", "package"), ("thresholds", "package"))
    assert other.prefix.parent.name == f"tiny-int8-{mode}-3_32_32-vacc"


def test_build_gives_every_fault_of_the_inputs_when_files_are_missing(make_config: MakeConfig, tmp_path: Path) -> None:
    overrides = (f"frontend.checkpoint={tmp_path}/gone.onnx", f"dataset.path={tmp_path}/gone")
    with pytest.raises(ConfigError) as caught:
        check(make_config(*overrides))
    assert [line.partition(": ")[2] for line in str(caught.value).splitlines()] == [
        f"{tmp_path}/gone.onnx: no such file",
        f"{tmp_path}/gone: no such folder or tar file",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "stored"), [("fp16", TensorProto.FLOAT16), ("fp32", TensorProto.FLOAT)])
def test_build_makes_a_float_package_when_the_precision_is_a_float(
    make_config: MakeConfig, dtype: str, stored: int
) -> None:
    cfg = make_config(f"backend.dtype={dtype}", "graph.extra_ops.type=softmax", "backend.quantize.calibrate_mode=mse")
    built = build(cfg, quiet)
    assert built.ran == ("calibset", "export", "convert", "prove", "package")
    assert built.prefix.parent.name == f"tiny-{dtype}-none-3_32_32-vacc"
    package = open_package(built.prefix)
    assert package.precision == dtype
    assert not (package.folder / "thresholds.json").exists()
    model = onnx.load(package.model)
    values = [*model.graph.input, *model.graph.output]
    assert [value.type.tensor_type.elem_type for value in values] == [TensorProto.FLOAT] * 2
    assert {weight.data_type for weight in model.graph.initializer if weight.dims} >= {stored}
    assert all(counts == {"images": 20, "agreeing": 20} for counts in package.report()["agreement"].values())
    assert summarize(built)[0].startswith(f"{dtype}, 0.0 MB; same class as float32 on calibration images: 20/20 in ")
    assert build(cfg, quiet).ran == ()


@pytest.mark.slow
def test_build_needs_no_images_when_the_precision_is_a_float(make_config: MakeConfig) -> None:
    built = build(make_config("backend.dtype=fp16", "dataset.path=null"), quiet)
    assert built.ran == ("export", "convert", "prove", "package")
    package = open_package(built.prefix)
    assert [known.id for known in package.classes()] == ["0", "1", "2", "3"]
    assert not package.has_images
    assert summarize(built)[0].startswith("fp16, 0.0 MB; same class as float32 on noise: ")


@pytest.mark.slow
def test_build_labels_evaluation_images_when_it_has_no_others(make_config: MakeConfig, image_tree: Path) -> None:
    cfg = make_config("backend.dtype=fp16", "dataset.path=null", f"evaluation.path={image_tree}")
    built = build(cfg, quiet)
    assert built.ran == ("image2npz", "export", "convert", "prove", "package")
    labels = open_package(built.prefix).workspace_file("val_label")
    assert labels is not None
    assert [line.rpartition(" ")[2] for line in labels.read_text().splitlines()] == [
        *"0" * 6,
        *"1" * 6,
        *"2" * 6,
        *"3" * 6,
    ]


@pytest.mark.slow
def test_build_covers_no_classes_when_nothing_is_calibrated(make_config: MakeConfig) -> None:
    overrides = ("dataset.sampler.get_data_num=3", "backend.dtype=fp32")
    assert build(make_config(*overrides), quiet).ran == ("calibset", "export", "convert", "prove", "package")


@pytest.mark.slow
def test_float_package_is_measured_and_scored_by_its_precision(
    make_config: MakeConfig,
    image_tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    built = build(make_config("backend.dtype=fp16", f"evaluation.path={image_tree}"), quiet)
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "-m", str(built.prefix), "-b", "5", "--iterations", "2", "--reference"]) == 0
    assert " images/s (medians); fp16 is " in capsys.readouterr().out
    datalist = open_package(built.prefix).workspace_file("datalist")
    assert main(["bench", "-m", str(built.prefix), "-b", "5", "--datalist", str(datalist), "--path_output", "out"]) == 0
    capsys.readouterr()
    assert main(["eval", "--result_path", "out", "--json", "-"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["fp16"]["top1"] == scored["float32"]["top1"]
    assert scored["comparison"]["agreement"]["correct"] == 24
    assert main(["eval", "--result_path", "out"]) == 0
    assert "\nfp16     top-1 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("dataset.process_ops=null", "backend.dtype=fp16"),
            "--set dataset.process_ops: missing, and vdsp_params too; give one (as in --set dataset.vdsp_params=FILE)",
        ),
        (
            ("dataset.process_ops=[{type: CustomFunc, func_name: prepare}]",),
            "--set dataset.process_ops.0.type: CustomFunc calls code of the vendor's toolchain; say it with Resize, "
            "CenterCrop and Normalize, or give --set dataset.vdsp_params=FILE",
        ),
        (
            ("frontend.type=tensorflow",),
            "--set frontend.type: tensorflow files cannot be read; wanted onnx: convert the model by tf2onnx, then "
            "give --set frontend.type=onnx --weights FILE.onnx",
        ),
    ],
)
def test_build_writes_nothing_when_the_file_loads_but_only_the_vendor_can_build_it(
    make_config: MakeConfig, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    cfg = make_config(*overrides)
    with pytest.raises(ConfigError) as caught:
        build(cfg, quiet)
    assert str(caught.value) == message
    assert not (tmp_path / "workspace").exists()


@pytest.mark.slow
def test_build_keeps_finished_stages_when_a_later_one_fails(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError) as caught:
        build(make_config("backend.quantize.exclude_layers=[7]"), quiet)
    assert str(caught.value) == ("backend.quantize.exclude_layers: the model has no layer 7; numbers go from 0 to 6")
    assert build(make_config(), quiet).ran == ("place", "quantize", "prove", "package")


@pytest.mark.slow
def test_build_succeeds_twice_when_two_run_at_once_in_one_workspace(
    make_config: MakeConfig, start_python: StartPython, tmp_path: Path
) -> None:
    make_config()
    both = [start_python("-m", "pipeline", "build", str(tmp_path / "tiny.yaml")) for _ in range(2)]
    ended = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    verify(tmp_path / "workspace" / PACKAGE)
    assert build(make_config(), quiet).ran == ()
    left = [path for path in (tmp_path / "workspace").rglob(".*") if path.is_dir() and path.name != ".cache"]
    assert left == []


def test_build_gives_an_error_line_when_the_workspace_is_a_file(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_config()
    (tmp_path / "workspace").write_text("in the way", encoding="utf-8")
    assert main(["build", str(tmp_path / "tiny.yaml")]) == 2
    assert capsys.readouterr().err == (
        f"error: [1/12] calibset: {tmp_path}/workspace/.cache/calibset: Not a directory; fix it and build again\n"
    )


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a file system that nobody may write to")
def test_build_gives_an_error_line_when_the_workspace_is_read_only(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_config()
    assert main(["build", str(tmp_path / "tiny.yaml"), "--set", "workspace.path=/sys/kernel/workspace"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: [1/12] calibset: /sys/kernel/workspace: ")
    assert printed.endswith("; fix it and build again\n")
    assert printed.count("\n") == 1


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="needs a file that exists and cannot be read")
def test_build_gives_an_error_line_when_the_checkpoint_cannot_be_read(make_config: MakeConfig) -> None:
    with pytest.raises(
        ConfigError, match=r"^--set frontend.checkpoint: /proc/self/mem: cannot be read \(Input/output error\)$"
    ):
        build(make_config("frontend.checkpoint=/proc/self/mem"), quiet)


def test_build_gives_an_error_line_when_the_package_cannot_be_put_in_place(
    finished: FinishedBuild, tmp_path: Path
) -> None:
    cfg = finished.copied_config(tmp_path / "copy")
    lock = tmp_path / "copy" / f".{PACKAGE}.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()
    with pytest.raises(DataError) as caught:
        build(cfg, quiet)
    assert str(caught.value) == (f"install: {lock}: Is a directory; fix it and build again")


@pytest.mark.slow
def test_build_gives_equal_bytes_when_repeated_in_another_workspace(make_config: MakeConfig, tmp_path: Path) -> None:
    """All but build.json, which holds the whole build file, the path of the workspace included."""
    first = build(make_config(), quiet)
    second = build(make_config(f"workspace.path={tmp_path}/elsewhere"), quiet)
    assert second.ran == ALL
    files = content(first.prefix.parent)
    others = content(second.prefix.parent)
    assert sorted(name for name in files if files[name] != others[name]) == ["build.json", "manifest.json"]
    assert files.keys() == others.keys()
    assert b"elsewhere" in others["build.json"]


@pytest.mark.slow
def test_package_runs_when_it_was_moved_and_its_workspace_removed(
    make_config: MakeConfig, tmp_path: Path, batch_nchw: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    built = build(make_config("backend.quantize.pixel_input=false"), quiet)
    expected = classifier.run(onnx.load(open_package(built.prefix).model), batch_nchw[:4])
    shutil.copytree(built.prefix.parent, tmp_path / "moved")
    shutil.rmtree(tmp_path / "workspace")
    shutil.rmtree(tmp_path / "images")
    moved = open_package(tmp_path / "moved" / "tiny")
    assert moved.workspace_file("float32_model") is None
    prepared = preprocess.apply(moved.preprocess(), np.zeros((3, 50, 60), np.uint8))
    assert prepared.shape == moved.input_chw
    assert [known.id for known in moved.classes()] == ["n90000001", "n90000002", "n90000003", "n90000004"]
    with open_backend(Runtime.ONNXRUNTIME, moved.model, batch=4, placement=place(1, 1)) as backend:
        np.testing.assert_array_equal(backend.infer(batch_nchw[:4]), expected)


def test_build_keeps_nothing_of_a_step_when_what_it_reads_changes_meanwhile(
    make_config: MakeConfig, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list would lack an image, and be taken for that of all of them when the image is back."""
    cfg = make_config(f"evaluation.path={image_tree}")
    image, away = sorted(image_tree.rglob("*.JPEG"))[-1], tmp_path / "away"

    def list_without_one(*given: Any, **named: Any) -> Any:
        image.rename(away)
        return list_dataset(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.stages.image2npz.list_dataset", list_without_one)
        with pytest.raises(DataError, match=f"{image_tree}: changed while image2npz read them; build again"):
            build(cfg, quiet)
    away.rename(image)
    build(cfg, quiet)
    [listed] = (tmp_path / "workspace").rglob("npz_datalist.txt")
    assert f"npz/{image.parent.name}/{image.stem}.npz" in listed.read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
def test_build_makes_evaluation_npz_when_evaluation_images_are_given(make_config: MakeConfig, image_tree: Path) -> None:
    built = build(make_config(f"evaluation.path={image_tree}", "evaluation.num=8"), quiet)
    assert built.ran == ("calibset", "image2npz", *ALL[1:])
    datalist = open_package(built.prefix).workspace_file("datalist")
    assert datalist is not None
    names = datalist.read_text(encoding="utf-8").splitlines()
    assert len(names) == 8
    assert all((datalist.parent / name).is_file() for name in names)
    labels = (datalist.parent / "val_label.txt").read_text(encoding="utf-8").splitlines()
    assert [line.rpartition(" ")[2] for line in labels] == ["0", "0", "1", "1", "2", "2", "3", "3"]


@pytest.mark.slow
@pytest.mark.realdata
def test_build_agrees_with_float32_when_weights_and_images_are_real(
    weights_folder: Path, real_images: Path, tmp_path: Path
) -> None:
    """64 calibration images; 100 others must get the answer of float32 in nine cases of ten, in every runtime."""
    cfg = load_build_file(
        "torchvision_resnet18.yaml",
        [
            f"frontend.checkpoint={weights_folder}/resnet18_pq.pth",
            f"dataset.path={real_images}/imagenet_train1k",
            "dataset.sampler.get_data_num=64",
            "dataset.sampler.cover_classes=false",
            f"workspace.path={tmp_path}",
        ],
    )
    package = open_package(build(cfg, quiet).prefix)
    assert package.report()["layers"] == {"weighted": 21, "quantized": 20}
    images = sorted((real_images / "nips2017_dev" / "val").glob("*.JPEG"))[:100]
    batch = np.stack([preprocess.apply(package.preprocess(), preprocess.decode(path)) for path in images])
    pixels = np.stack([preprocess.load(package.preprocess(), path, raw=True) for path in images])
    float32 = package.workspace_file("float32_model")
    assert float32 is not None
    expected = classifier.run(onnx.load(float32), batch).argmax(axis=1)
    agreeing = {}
    for runtime in installed_runtimes():
        with open_backend(runtime, package.model, batch=20, placement=place(1, available_cores())) as backend:
            answers = np.concatenate([backend.infer(pixels[start : start + 20]) for start in range(0, 100, 20)])
        agreeing[runtime.value] = int((answers.argmax(axis=1) == expected).sum())
    assert all(count >= 90 for count in agreeing.values()), agreeing


NUMBERED = dict(zip(("n90000001", "n90000002", "n90000003", "n90000004"), ("1", "2", "10", "11"), strict=True))


@pytest.fixture
def numbered(image_tree: Path) -> Path:
    """The images in folders 1, 2, 10, 11, in the order of the network's outputs. As text: 1, 10, 11, 2."""
    for name, number in NUMBERED.items():
        (image_tree / name).rename(image_tree / number)
    return image_tree


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "fp32"])
def test_build_measures_both_orders_when_class_folders_are_numbers(
    make_config: MakeConfig, numbered: Path, dtype: str
) -> None:
    lines: list[str] = []
    build(make_config(f"backend.dtype={dtype}"), lines.append)
    notes = [line for line in lines if line.startswith("note: class folders are numbers")]
    assert len(notes) == 2
    assert "sorted as text (1, 10, 11, 2), as torchvision does; in numeric order they are 1, 2, 10, 11:" in notes[0]
    shares = re.search(
        r"sorted as text .* is right on (\d+)% of the 20 .* in numeric order .* on (\d+)%: --set dataset.class_order=n",
        notes[1],
    )
    assert shares is not None
    assert int(shares[1]) <= 30
    assert int(shares[2]) >= 90
    again: list[str] = []
    assert build(make_config(f"backend.dtype={dtype}"), again.append).ran == ()
    assert [line for line in again if line.startswith("note: ")] == notes


@pytest.mark.slow
def test_build_labels_outputs_by_number_when_it_is_told_to(make_config: MakeConfig, numbered: Path) -> None:
    lines: list[str] = []
    order = "dataset.class_order=numeric"
    built = build(make_config(order, f"evaluation.path={numbered}"), lines.append)
    assert [known.id for known in open_package(built.prefix).classes()] == ["1", "2", "10", "11"]
    (note,) = [line for line in lines if line.startswith("note: ")]
    assert note.startswith(
        "note: class folders are numbers: in numeric order (1, 2, 10, 11), as they are here, float32 "
    )
    labels = (built.stages["image2npz"] / "val_label.txt").read_text(encoding="utf-8").splitlines()
    assert {tuple(line.split()) for line in labels} == {
        (f"{number}/{name}_{image}", str(index))
        for index, (name, number) in enumerate(NUMBERED.items())
        for image in range(6)
    }


@pytest.mark.slow
def test_build_names_the_classes_that_evaluation_images_lack_and_moves_no_index(
    make_config: MakeConfig, image_tree: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_tree, tmp_path / "evaluation")
    shutil.rmtree(tmp_path / "evaluation" / "n90000002")
    lines: list[str] = []
    built = build(make_config(f"evaluation.path={tmp_path}/evaluation"), lines.append)
    assert f"note: {tmp_path}/evaluation: no images of 1 of the 4 classes: 'n90000002'" in lines
    labels = (built.stages["image2npz"] / "val_label.txt").read_text(encoding="utf-8").split()
    assert set(zip((key.partition("/")[0] for key in labels[::2]), labels[1::2], strict=True)) == {
        ("n90000001", "0"),
        ("n90000003", "2"),
        ("n90000004", "3"),
    }


@pytest.mark.slow
def test_build_says_that_labels_do_not_fit_when_folders_are_in_another_order(
    make_config: MakeConfig, image_tree: Path
) -> None:
    for name, other in (("n90000001", "d"), ("n90000002", "c"), ("n90000003", "b"), ("n90000004", "a")):
        (image_tree / name).rename(image_tree / other)
    lines: list[str] = []
    build(make_config(), lines.append)
    (note,) = [line for line in lines if line.startswith("note: float32 is right on only")]
    assert "most classes have an output of their own (images of 'a' get output 3, here 'd')" in note


def test_build_says_that_the_order_has_no_effect_when_labels_are_not_folders(
    make_config: MakeConfig, image_tree: Path, tmp_path: Path
) -> None:
    wnids = [known.id for known in imagenet_classes()[:4]]
    for name, wnid in zip(sorted(NUMBERED), wnids, strict=True):
        (image_tree / name).rename(image_tree / wnid)
    lines: list[str] = []
    off = ("dataset.sampler.cover_classes=false", "dataset.class_order=text")
    with pytest.raises(ConfigError, match="1000 classes"):
        build(make_config(*off, "frontend.num_classes=5"), lines.append)
    assert "note: dataset.class_order has no effect: the classes are ImageNet's, or labels come from a list" in lines


def test_build_prepares_each_image_once_for_the_stages_that_read_it(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path | bytes] = []

    def counted(spec: PreprocessSpec, source: Path | bytes, *, raw: bool) -> Prepared:
        seen.append(source)
        return preprocess.load(spec, source, raw=raw)

    monkeypatch.setattr(prepared, "preprocess", SimpleNamespace(load=counted))
    built = build(make_config(), quiet)
    assert {"equalize", "round", "calibrate"} <= built.stage_seconds.keys()
    listed = read_calibration_list(built.stages["calibset"] / "calibration.txt")
    assert sorted(map(str, seen)) == sorted(str(sample.source) for sample in listed)
