"""calibrate.py against a slow reference, and after being killed."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from pipeline.building import build
from pipeline.config.build_config import BuildConfig
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.data.calibration_list import read_calibration_list
from pipeline.errors import DataError
from pipeline.onnx_models import classifier
from pipeline.quant import placement, qmath
from pipeline.quant.addends import find_addends
from pipeline.quant.counting import Counts
from pipeline.quant.float_parts import FloatParts
from pipeline.quant.observers import ObserverSet
from pipeline.runtimes import readers
from pipeline.runtimes.readers import computes_bfloat16
from pipeline.stages import calibrate, calibset, export, int8_reading, rounding

MakeConfig = Callable[..., BuildConfig]
StartPython = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def inputs(make_config: MakeConfig, tmp_path: Path) -> dict[str, Path]:
    """What the stages before left; 22 images."""
    cfg = make_config("dataset.sampler.get_data_num=22")
    folders = {name: tmp_path / "inputs" / name for name in ("calibset", "export")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    calibset.run(calibset.take_settings(cfg), {}, folders["calibset"])
    export.run(export.take_settings(cfg), folders, folders["export"])
    return folders


def run(cfg: BuildConfig, inputs: dict[str, Path], out: Path) -> ObserverSet:
    out.mkdir(exist_ok=True)
    calibrate.run(calibrate.take_settings(cfg), inputs, out)
    observers, images = ObserverSet.load(out / "observers.npz")
    assert images == 22
    return observers


def prepared_images(inputs: dict[str, Path], spec: PreprocessSpec) -> np.ndarray:
    samples = read_calibration_list(inputs["calibset"] / "calibration.txt")
    return np.stack([preprocess.apply(spec, preprocess.decode(sample.source.content())) for sample in samples])


def test_run_counts_what_a_slow_reference_counts(
    make_config: MakeConfig, inputs: dict[str, Path], spec: PreprocessSpec, tmp_path: Path
) -> None:
    """The reference runs image by image with every tensor as an output, keeps all of it, and counts with numpy.

    A convolution may sum in another order where its batch is of another size, so a value may move by a rounding error
    into the bin beside its own; the sorted values must agree all the same.
    """
    found = run(make_config(), inputs, tmp_path / "out")
    model = onnx.load(inputs["export"] / "model.onnx")
    names = placement.observed_tensors(model)
    assert list(found.observers) == names
    raised = find_addends(model, names)  # whose values below zero are counted as tests/quant/test_addends.py says
    assert raised
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names[1:])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = prepared_images(inputs, spec)
    answers = [session.run(["output", *names[1:]], {"input": image[None]}) for image in images]
    values = [images, *(np.concatenate([answer[place] for answer in answers]) for place in range(1, len(names)))]
    for name, wanted in zip(names, values, strict=True):
        observer = found.observers[name]
        assert observer.lowest == pytest.approx(wanted.min(), rel=1e-4)
        assert observer.highest == pytest.approx(wanted.max(), rel=1e-4)
        counts = np.bincount(qmath.float_keys(wanted.reshape(-1)), minlength=qmath.BINS)
        assert observer.counts.sum() == wanted.size
        compared = slice(1, qmath.BINS // 2) if name in raised else slice(None)
        assert np.abs(counts - observer.counts)[compared].sum() <= 0.01 * wanted.size, name
    np.testing.assert_array_equal(
        found.observers["input"].counts, np.bincount(qmath.float_keys(images.reshape(-1)), minlength=qmath.BINS)
    )
    # What the layers read: the input and the ReLUs, but for the pooled ones, which take their input's range.
    assert list(found.mean_sums) == list(placement.layer_inputs(model))
    for name in set(found.mean_sums) & set(names):
        wanted = values[names.index(name)]
        np.testing.assert_allclose(found.mean_sums[name] / 22, wanted.mean(axis=(0, 2, 3)), rtol=1e-4)
    outputs = np.load(tmp_path / "out" / "outputs.npy")
    expected = np.concatenate([answer[0] for answer in answers])
    assert classifier.relative_error(expected, outputs) < 1e-5


@pytest.mark.skipif(not computes_bfloat16(), reason="this CPU does not compute in bfloat16")
def test_run_counts_in_bfloat16_nearly_what_it_counts_in_float32(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = run(make_config(), inputs, tmp_path / "float32")  # 22 images are too few for bfloat16
    monkeypatch.setattr(readers, "_LEAST_IMAGES", 1)
    found = run(make_config(), inputs, tmp_path / "bfloat16")
    assert list(found.observers) == list(exact.observers)
    rounded = 0
    for name, observer in found.observers.items():
        wanted = exact.observers[name]
        assert observer.counts.sum() == wanted.counts.sum()
        largest = max(wanted.highest, -wanted.lowest)
        assert (observer.lowest, observer.highest) == pytest.approx((wanted.lowest, wanted.highest), abs=0.03 * largest)
        assert np.abs(np.cumsum(observer.counts) - np.cumsum(wanted.counts)).max() <= 0.03 * wanted.counts.sum(), name
        rounded += not np.array_equal(observer.counts, wanted.counts)
    assert rounded >= len(found.observers) - 1  # all but the input, which stays float32
    for name, mean in found.means().items():
        assert np.linalg.norm(mean - exact.means()[name]) <= 0.02 * np.linalg.norm(exact.means()[name])


def test_run_writes_its_figures_and_leaves_no_partial(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    run(make_config(), inputs, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "figures.json",
        "observers.npz",
        "outputs.npy",
    ]
    figures = json.loads((tmp_path / "out" / "figures.json").read_text(encoding="utf-8"))
    assert (figures["images"], figures["tensors"], figures["resumed_at"]) == (22, 10, 0)


# Saves after every other image; dies after the third save, as hard as a process can.
KILLED = """
import os, signal, sys
from pipeline.stages import calibrate
from pipeline.commands.cli import main
from pipeline.quant.counting import Counts
calibrate._SECONDS_BETWEEN_SAVES, calibrate._ROUND = 0.0, 2
save, saves = Counts.save, []
def save_and_die(*arguments):
    save(*arguments)
    saves.append(1)
    if len(saves) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
Counts.save = save_and_die
sys.exit(main(["build", sys.argv[1], "--set", "backend.quantize.weight_rounding=nearest"]))
"""


@pytest.mark.slow
def test_build_gives_the_same_calibration_when_it_was_killed_on_the_way(
    make_config: MakeConfig, start_python: StartPython, tmp_path: Path
) -> None:
    cfg = make_config("backend.quantize.weight_rounding=nearest")
    process = start_python("-c", KILLED, str(tmp_path / "tiny.yaml"))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    stages = tmp_path / "workspace" / ".cache" / "calibrate"
    (partial,) = stages.glob(".*.partial")
    assert not [path for path in stages.iterdir() if path.is_dir() and path != partial]
    # What a kill in the middle of a save leaves, too.
    (partial / ".partial.npz-abcdefgh").write_bytes(b"half")
    ahead = np.concatenate([np.load(partial / "partial.npy"), np.ones((4, 4), np.float32)])
    np.save(partial / "partial.npy", ahead)
    resumed = build(cfg, lambda line: None)
    assert resumed.ran == ("calibrate", "thresholds", "place", "quantize", "prove", "package")
    elsewhere = make_config("backend.quantize.weight_rounding=nearest", f"workspace.path={tmp_path}/undisturbed")
    undisturbed = build(elsewhere, lambda line: None)
    folders = [
        next(path for path in (root / ".cache" / "calibrate").iterdir() if path.is_dir())
        for root in (tmp_path / "workspace", tmp_path / "undisturbed")
    ]
    figures = [json.loads((folder / "figures.json").read_text(encoding="utf-8")) for folder in folders]
    assert [each["resumed_at"] for each in figures] == [6, 0]
    for name in ("observers.npz", "outputs.npy"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert sorted(path.name for path in folders[0].iterdir()) == sorted(path.name for path in folders[1].iterdir())
    models = [(built.prefix.parent / "tiny.onnx").read_bytes() for built in (resumed, undisturbed)]
    assert models[0] == models[1]


def test_run_goes_on_after_the_images_that_rounding_counted(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outcome is that of counting all images here; what additions read of convolutions is counted there alone."""
    for module in (calibrate, rounding):
        monkeypatch.setattr(module, "FITTING_IMAGES", 8)
    alone = run(make_config(), inputs, tmp_path / "alone")
    rounded = tmp_path / "inputs" / "round"
    rounded.mkdir()
    rounding.run(rounding.take_settings(make_config()), inputs, rounded)
    head, images = ObserverSet.load(rounded / "observers.npz")
    assert images == 8
    found = run(make_config(), {**inputs, "round": rounded}, tmp_path / "out")
    addends = find_addends(onnx.load(inputs["export"] / "model.onnx"), list(alone.observers))
    assert addends
    for name, observer in alone.observers.items():
        share = 1 if name in addends else 22 / 8
        assert head.observers[name].counts.sum() * share == pytest.approx(observer.counts.sum(), rel=1e-6)
        np.testing.assert_array_equal(found.observers[name].counts, observer.counts)
        np.testing.assert_allclose([found.observers[name].highest], [observer.highest], rtol=1e-6)
    for name, sums in alone.mean_sums.items():
        np.testing.assert_allclose(found.mean_sums[name], sums, rtol=1e-6)
    outputs = [np.load(tmp_path / name / "outputs.npy") for name in ("out", "alone")]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    model = onnx.load(inputs["export"] / "model.onnx")
    images_nchw = prepared_images(inputs, make_config().preprocess)
    assert classifier.relative_error(classifier.run(model, images_nchw), outputs[0]) < 1e-5  # in the list's order


def test_run_opens_no_session_when_rounding_counted_all_images(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = tmp_path / "inputs" / "round"
    rounded.mkdir()
    rounding.run(rounding.take_settings(make_config()), inputs, rounded)
    monkeypatch.setattr(calibrate, "open_reader", None)
    found = run(make_config(), {**inputs, "round": rounded}, tmp_path / "out")
    assert found.observers["input"].counts.sum() == 22 * 3 * 32 * 32


@pytest.mark.parametrize("damage", ["observers", "outputs", "other tensors", "empty outputs"])
def test_run_starts_over_when_the_partial_is_of_no_use(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    whole = run(make_config(), inputs, tmp_path / "whole")
    out = tmp_path / "out"
    out.mkdir()
    whole.save(out / "partial.npz", images=8)
    np.save(out / "partial.npy", np.zeros((8, 4), np.float32))
    if damage == "observers":
        (out / "partial.npz").write_bytes((out / "partial.npz").read_bytes()[:-9])
    elif damage == "outputs":
        np.save(out / "partial.npy", np.zeros((7, 4), np.float32))
    elif damage == "empty outputs":
        (out / "partial.npy").write_bytes(b"")
    else:
        ObserverSet(["input", "other"]).save(out / "partial.npz", images=8)
    run(make_config(), inputs, out)
    for name in ("observers.npz", "outputs.npy"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_run_names_the_activation_when_it_overflows(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Weights so large that the float32 model gives Inf inside."""
    model = onnx.load(inputs["export"] / "model.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == model.graph.node[0].input[2])
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] = np.inf
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, inputs["export"] / "model.onnx")
    with pytest.raises(DataError) as caught:
        run(make_config(), inputs, tmp_path / "out")
    assert str(caught.value) == (
        "activation /relu/Relu_output_0: holds NaN or Inf in float32; check the checkpoint, the preprocessing, and "
        "constants of the network that are infinite"
    )


def test_run_names_the_image_when_it_cannot_be_decoded(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    image = read_calibration_list(inputs["calibset"] / "calibration.txt")[13].source.content()
    assert isinstance(image, Path)
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(DataError) as caught:
        run(make_config(), inputs, tmp_path / "out")
    assert str(caught.value).startswith(f"{image}: cannot be decoded as an image: ")


def test_run_takes_images_of_any_size_and_mode(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    image = read_calibration_list(inputs["calibset"] / "calibration.txt")[3].source.content()
    assert isinstance(image, Path)
    Image.new("L", (300, 37), 90).save(image)
    observers = run(make_config(), inputs, tmp_path / "out").observers
    assert observers["input"].counts.sum() == 22 * 3 * 32 * 32


@pytest.fixture
def rounded(make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stage `round` left of 8 images; the 14 others are worth an int8 model."""
    for module in (calibrate, rounding):
        monkeypatch.setattr(module, "FITTING_IMAGES", 8)
    monkeypatch.setattr(int8_reading, "LEAST_IMAGES", 14)
    folder = tmp_path / "inputs" / "round"
    folder.mkdir()
    rounding.run(rounding.take_settings(make_config()), inputs, folder)
    return folder


def test_run_counts_in_levels_of_an_int8_model_nearly_what_it_counts_in_float32(
    make_config: MakeConfig, inputs: dict[str, Path], rounded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def watched(*arguments: Any, **named: Any) -> int8_reading.Int8Reading | None:
        opened.append(int8_reading_open(*arguments, **named))
        return opened[-1]

    int8_reading_open = int8_reading.open_int8
    monkeypatch.setattr(int8_reading, "open_int8", watched)
    found = run(make_config(), {**inputs, "round": rounded}, tmp_path / "int8")
    assert opened[0] is not None
    monkeypatch.setattr(int8_reading, "LEAST_IMAGES", 15)
    exact = run(make_config(), {**inputs, "round": rounded}, tmp_path / "float32")
    assert len(opened) == 1
    assert not found.levels
    differ = 0
    for name, observer in found.observers.items():
        wanted = exact.observers[name]
        assert observer.counts.sum() == wanted.counts.sum()
        for percentile in (99.99, 99.9, 99.0):
            mine, its = (
                qmath.percentile_range(each.counts, each.lowest, each.highest, percentile)
                for each in (observer, wanted)
            )
            width = its.high - its.low
            assert (mine.low, mine.high) == pytest.approx((its.low, its.high), abs=0.03 * width), name
        differ += not np.array_equal(observer.counts, wanted.counts)
    assert differ >= 5
    assert found.averaged == exact.averaged == 8
    outputs = [np.load(tmp_path / name / "outputs.npy") for name in ("int8", "float32")]
    assert classifier.relative_error(outputs[1], outputs[0]) < 0.1
    assert sorted(path.name for path in (tmp_path / "int8").iterdir()) == [
        "figures.json",
        "observers.npz",
        "outputs.npy",
    ]


def test_run_reads_images_in_float32_that_reach_beyond_the_first_ranges(
    make_config: MakeConfig, inputs: dict[str, Path], rounded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ranges of a third of the first images' extremes all images do, and the outcome is that of float32."""
    exact = run(make_config(), inputs, tmp_path / "float32")
    monkeypatch.setattr(int8_reading, "_WIDENING", 0.33)
    monkeypatch.setattr(int8_reading, "_LARGEST_SHARE", 10.0)
    found = run(make_config(), {**inputs, "round": rounded}, tmp_path / "int8")
    for name, observer in found.observers.items():
        if name in find_addends(onnx.load(inputs["export"] / "model.onnx"), list(found.observers)):
            continue
        np.testing.assert_array_equal(observer.counts, exact.observers[name].counts)
        assert (observer.lowest, observer.highest) == pytest.approx(
            (exact.observers[name].lowest, exact.observers[name].highest), rel=1e-5
        )


@pytest.mark.parametrize("reason", ["far from float32", "parts in float32"])
def test_run_reads_float32_when_an_int8_model_will_not_do(
    make_config: MakeConfig,
    inputs: dict[str, Path],
    rounded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
) -> None:
    exact = run(make_config(), inputs, tmp_path / "float32")
    if reason == "far from float32":
        monkeypatch.setattr(int8_reading, "_LARGEST_SHARE", 1e-6)
    else:
        monkeypatch.setattr(int8_reading, "float_parts", lambda model, gates: FloatParts(frozenset({"gate"})))
    found = run(make_config(), {**inputs, "round": rounded}, tmp_path / "out")
    addends = find_addends(onnx.load(inputs["export"] / "model.onnx"), list(found.observers))
    for name in found.observers.keys() - addends.keys():
        np.testing.assert_array_equal(found.observers[name].counts, exact.observers[name].counts)


def test_run_resumes_levels_where_it_was_interrupted(
    make_config: MakeConfig, inputs: dict[str, Path], rounded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, out = {**inputs, "round": rounded}, tmp_path / "out"
    run(make_config(), given, tmp_path / "whole")
    interrupt(make_config(), given, out, monkeypatch)
    assert ObserverSet.load(out / "partial.npz")[0].levels
    run(make_config(), given, out)
    assert json.loads((out / "figures.json").read_text(encoding="utf-8"))["resumed_at"] == 12
    for name in ("observers.npz", "outputs.npy"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_run_goes_on_in_float32_when_levels_of_an_interrupted_run_stand_for_other_values(
    make_config: MakeConfig, inputs: dict[str, Path], rounded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, out = {**inputs, "round": rounded}, tmp_path / "out"
    whole = run(make_config(), given, tmp_path / "whole")
    interrupt(make_config(), given, out, monkeypatch)
    monkeypatch.setattr(int8_reading, "_WIDENING", 1.5)
    found = run(make_config(), given, out)
    kept = {name: (each.scale, each.values) for name, each in found.levels.items()}
    assert kept == {name: (each.scale, 4 * each.values // 14) for name, each in whole.levels.items()}


def interrupt(cfg: BuildConfig, given: dict[str, Path], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until four images have been read in int8."""
    monkeypatch.setattr(calibrate, "_SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(calibrate, "_ROUND", 4)
    save = Counts.save

    def save_and_stop(self: Counts, observers: Path, outputs: Path) -> None:
        save(self, observers, outputs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Counts, "save", save_and_stop)
        run(cfg, given, out)
