"""rounding.py: what it measures, and that it goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import small_graphs
import torch

from pipeline.building import build
from pipeline.config.build_config import BuildConfig
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.data.calibration_list import read_calibration_list
from pipeline.proof import agreement
from pipeline.quant.bfloat16 import Values
from pipeline.quant.counting import Counter
from pipeline.quant.covariance import Covariance
from pipeline.quant.graphs import activation_shapes
from pipeline.quant.layers import Layer, layers_of
from pipeline.quant.rounding import read_rounded, write_rounded
from pipeline.stages import calibset, export, rounding, rounding_inputs
from pipeline.terminal.total_progress import TotalProgress, whole_work

MakeConfig = Callable[..., BuildConfig]
Float32 = npt.NDArray[np.float32]

SOME_PASSES = 50_000  # bytes of inputs at once, in which the tiny network takes three passes


@pytest.fixture
def inputs(make_config: MakeConfig, tmp_path: Path) -> dict[str, Path]:
    """What the stages before left; 20 images."""
    folders = {name: tmp_path / "inputs" / name for name in ("calibset", "export")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    calibset.run(calibset.take_settings(make_config()), {}, folders["calibset"])
    export.run(export.take_settings(make_config()), folders, folders["export"])
    return folders


def run(cfg: BuildConfig, inputs: dict[str, Path], out: Path) -> bytes:
    out.mkdir(exist_ok=True)
    rounding.run(rounding.take_settings(cfg), inputs, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "arithmetic.json",
        "figures.json",
        "observers.npz",
        "outputs.npy",
        "weights.npz",
    ]
    return (out / "weights.npz").read_bytes()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The layers of each pass over the images; raises in the pass of number `fail_at`, of those not yet seen."""
    seen: list[list[str]] = []
    collect = rounding_inputs.collect

    def watched(reading: Any, layers: Any, *rest: Any) -> Any:
        seen.append([layer.name for layer in layers])
        return collect(reading, layers, *rest)

    monkeypatch.setattr(rounding_inputs, "collect", watched)
    monkeypatch.setattr(rounding_inputs, "_MEMORY", SOME_PASSES)
    yield seen


def interrupt(monkeypatch: pytest.MonkeyPatch, *, at: int) -> None:
    """Let the next run end in the middle of a pass over the images, as Ctrl-C would; `at` counts from 1."""
    advanced: list[int] = []
    collect: Callable[..., Any] = rounding_inputs.collect
    columns = 0

    def cut_short(*arguments: Any) -> Any:
        nonlocal columns
        columns += 1
        if columns < at:
            return collect(*arguments)

        def stop() -> None:
            advanced.append(1)
            if len(advanced) == 5:
                raise KeyboardInterrupt

        return collect(*arguments[:-1], stop)

    monkeypatch.setattr(rounding_inputs, "collect", cut_short)


def test_run_rounds_every_layer_and_better_than_to_the_nearest(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    run(make_config(), inputs, tmp_path / "out")
    rounded = read_rounded(tmp_path / "out" / "weights.npz")
    layers = list(layers_of(onnx.load(inputs["export"] / "model.onnx")))
    assert list(rounded) == [layer.name for layer in layers]
    assert len(layers) == 7
    for layer in layers:
        assert rounded[layer.name].weights.shape == layer.weights.matrix.shape
        assert rounded[layer.name].sqnr_db >= rounded[layer.name].nearest_sqnr_db
    assert np.mean([each.sqnr_db - each.nearest_sqnr_db for each in rounded.values()]) > 3


def test_run_reads_further_images_for_the_weights_alone_when_there_is_a_goal(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "FITTING_IMAGES", 4)
    monkeypatch.setattr(agreement, "choose_further", lambda listed: [1, 2, 3])
    plain = run(make_config(), inputs, tmp_path / "plain")
    found = run(make_config("accuracy.max_kl=0.001"), inputs, tmp_path / "goal")
    assert found != plain
    read = [json.loads((tmp_path / name / "figures.json").read_text())["images"] for name in ("plain", "goal")]
    assert read[1] == read[0] + 3
    counted = [np.load(tmp_path / name / "outputs.npy").tolist() for name in ("plain", "goal")]
    assert counted[0] == counted[1]  # of the usual images, which calibration leaves out


@pytest.mark.slow
def test_run_measures_the_inputs_of_every_layer(
    make_config: MakeConfig,
    inputs: dict[str, Path],
    spec: PreprocessSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against numpy's covariance of what torch unfolds, of all pixels of all images, run one by one without buffers."""
    monkeypatch.setattr(rounding, "POSITIONS", 1 << 20)
    monkeypatch.setattr(rounding, "_AT_ONCE", 1)  # so that the layers' results come in their order
    found: dict[str, Float32] = {}

    class Watched(Covariance):
        def result(self) -> Float32:
            covariance: Float32 = super().result()
            found[order[len(found)]] = covariance.copy()
            return covariance

    model = onnx.load(inputs["export"] / "model.onnx")
    layers = list(layers_of(model))
    order = [layer.name for layer in layers]
    monkeypatch.setattr(rounding_inputs, "Covariance", Watched)
    run(make_config(), inputs, tmp_path / "out")
    sources = list(dict.fromkeys(layer.source for layer in layers if layer.source != "input"))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sources)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    samples = read_calibration_list(inputs["calibset"] / "calibration.txt")
    images = [preprocess.apply(spec, preprocess.decode(sample.source.content()))[None] for sample in samples]
    values = {"input": images}
    values.update({name: [session.run([name], {"input": image})[0] for image in images] for name in sources})
    for layer in layers:
        columns = np.concatenate(values[layer.source])
        if layer.kernel is not None:
            pads = (layer.pads[0], layer.pads[1])
            assert layer.pads == pads * 2
            unfolded = torch.nn.functional.unfold(
                torch.from_numpy(columns), layer.kernel, padding=pads, stride=layer.strides
            )
            columns = unfolded.numpy().swapaxes(1, 2).reshape(-1, layer.inputs)
        expected = np.cov(columns.astype(np.float64), rowvar=False, bias=True)
        np.testing.assert_allclose(
            found[layer.name], expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=layer.name
        )


@pytest.mark.parametrize("at", [1, 2, 3])
def test_run_gives_equal_bytes_when_it_was_interrupted(
    make_config: MakeConfig,
    inputs: dict[str, Path],
    tmp_path: Path,
    passes: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    undisturbed = run(make_config(), inputs, tmp_path / "undisturbed")
    every_pass = list(passes)
    assert len(every_pass) >= 3
    out = tmp_path / "out"
    out.mkdir()
    with monkeypatch.context() as patched:
        interrupt(patched, at=at)
        with pytest.raises(KeyboardInterrupt):
            rounding.run(rounding.take_settings(make_config()), inputs, out)
    assert len(list(out.glob("partial_*.npz"))) == at - 1
    (out / ".partial_0.npz-abcdefgh").write_bytes(b"half")  # what a kill in the middle of a save leaves
    passes.clear()
    assert run(make_config(), inputs, out) == undisturbed
    assert passes == every_pass[at - 1 :]


@pytest.mark.parametrize("damage", ["cut", "of other layers", "of some layers", "empty"])
def test_run_rounds_again_when_a_partial_is_of_no_use(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path, passes: list[list[str]], damage: str
) -> None:
    undisturbed = run(make_config(), inputs, tmp_path / "undisturbed")
    whole = read_rounded(tmp_path / "undisturbed" / "weights.npz")
    every_pass = list(passes)
    first, second = ({name: whole[name] for name in names} for names in every_pass[:2])
    out = tmp_path / "out"
    out.mkdir()
    partial = out / "partial_0.npz"
    write_rounded(partial, first)
    write_rounded(out / "partial_1.npz", second)
    if damage == "cut":
        partial.write_bytes(partial.read_bytes()[:-20])
    elif damage == "empty":
        partial.write_bytes(b"")
    elif damage == "of some layers":
        write_rounded(partial, dict(list(first.items())[:-1]))
    else:
        write_rounded(partial, second)
    passes.clear()
    assert run(make_config(), inputs, out) == undisturbed
    assert passes == [every_pass[0], *every_pass[2:]]


def test_run_rounds_layer_by_layer_when_there_is_memory_for_no_more(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first layer's pass reads the model's input and nothing else."""
    monkeypatch.setattr(rounding_inputs, "_MEMORY", 1)
    run(make_config(), inputs, tmp_path / "out")
    assert len(read_rounded(tmp_path / "out" / "weights.npz")) == 7


@pytest.mark.slow
def test_run_rounds_alike_whether_covariances_or_activations_are_held(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all positions: which are drawn is another matter."""
    monkeypatch.setattr(rounding, "POSITIONS", 1 << 20)
    written: list[object] = []
    for size in (rounding_inputs.Size(covariance=1, activations=2), rounding_inputs.Size(covariance=2, activations=1)):
        monkeypatch.setattr(
            rounding_inputs, "sizes_of", lambda layers, *_, size=size: {each.name: size for each in layers}
        )
        written.append(run(make_config(), inputs, tmp_path / f"out{len(written)}"))
    assert written[0] == written[1]


def test_run_reads_more_positions_of_each_image_when_there_are_fewer_images(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 images: as many rows in all as of 128, 32 of each; otherwise a small network lost 2.6 dB."""
    rows: list[int] = []

    class Watched(Layer):
        def columns(self, values: Values, positions: int, random: np.random.Generator) -> Values:
            rows.append(positions)
            return super().columns(values, positions, random)

    monkeypatch.setattr(rounding, "layers_of", lambda model: [Watched(**vars(layer)) for layer in layers_of(model)])
    run(make_config(), inputs, tmp_path / "out")
    assert set(rows) == {128 * 32 // 20}


def test_run_rounds_when_all_images_are_the_same(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """The classifier's inputs are one vector then, again and again: their covariance is zero but for float32."""
    samples = read_calibration_list(inputs["calibset"] / "calibration.txt")
    first = samples[0].source.content()
    assert isinstance(first, Path)
    for sample in samples[1:]:
        other = sample.source.content()
        assert isinstance(other, Path)
        other.write_bytes(first.read_bytes())
    run(make_config(), inputs, tmp_path / "out")
    rounded = read_rounded(tmp_path / "out" / "weights.npz")
    model = onnx.load(inputs["export"] / "model.onnx")
    gemm = next(layer for layer in layers_of(model) if layer.kernel is None)
    steps = gemm.weights.matrix / rounded[gemm.name].scales[:, None]
    assert np.abs(rounded[gemm.name].weights - steps).max() <= 1.5


@pytest.mark.slow
def test_build_goes_on_with_rounding_when_it_was_interrupted(
    make_config: MakeConfig, tmp_path: Path, passes: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt(patched, at=2)
        with pytest.raises(KeyboardInterrupt):
            build(make_config(), lambda line: None)
    begun = list(passes)
    passes.clear()
    resumed = build(make_config(), lambda line: None)
    assert resumed.ran == ("round", "calibrate", "thresholds", "place", "quantize", "prove", "package")
    assert passes[0] == begun[1]
    assert begun[0] not in passes
    undisturbed = build(make_config(f"workspace.path={tmp_path}/undisturbed"), lambda line: None)
    models = [(built.prefix.parent / "tiny.onnx").read_bytes() for built in (resumed, undisturbed)]
    assert models[0] == models[1]


def test_progress_counts_work_and_not_layers(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer of 144 inputs moves the bar as much further than one of 27 as rounding it takes longer."""
    layers = [layer.weights.matrix.shape for layer in layers_of(onnx.load(inputs["export"] / "model.onnx"))]
    told: list[float] = []
    monkeypatch.setattr(TotalProgress, "tell", lambda self, share: told.append(share))
    (tmp_path / "out").mkdir()
    with whole_work({}):
        rounding.run(rounding.take_settings(make_config()), inputs, tmp_path / "out")
    assert told == sorted(told)
    assert told[-1] == 1
    moves = np.diff(told)[-len(layers) :]
    work = np.array([n**3 + 1.2 * n * n * m + 9e6 * n for m, n in layers])
    np.testing.assert_allclose(moves / moves.sum(), work / work.sum(), rtol=1e-3)
    images = np.diff(told)[: -len(layers)]
    np.testing.assert_allclose(images[images > 0], images.max())  # each image alike
    assert (images > 0).sum() == 20


def test_run_rounds_the_same_when_weights_wait_in_files(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(make_config(), inputs, tmp_path / "in memory")
    monkeypatch.setattr(rounding, "_LARGE", 1)
    assert run(make_config(), inputs, tmp_path / "in files") == expected


def test_run_holds_no_weights_while_a_reader_holds_the_model(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect: Callable[..., Any] = rounding_inputs.collect
    held: list[bool] = []

    def watched(reading: Any, layers: Any, *rest: Any) -> Any:
        held.extend(any(layer.weights.matrix.strides) for layer in layers)
        return collect(reading, layers, *rest)

    monkeypatch.setattr(rounding_inputs, "collect", watched)
    run(make_config(), inputs, tmp_path / "out")
    assert held
    assert not any(held)


def test_collect_holds_no_activations_that_take_more_than_a_covariance(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """An attention network's products: [images * tokens, features], of which the shape tells the features only."""
    made = small_graphs.Builder()
    tokens = made.op("Reshape", made.conv("x", 3, 8), made.constant([-1, 8], np.int64))  # 1024 for an image
    hidden = made.op("Relu", made.gemm(tokens, 8, 16))
    model = made.model(made.gemm(made.op("Reshape", hidden, made.constant([-1, 16 * 1024], np.int64)), 16 * 1024, 5))
    for axis, size in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], (32, 32), strict=True):
        axis.dim_value = size
    onnx.save(model, tmp_path / "model.onnx")
    settings = rounding.take_settings(make_config())
    images = read_calibration_list(inputs["calibset"] / "calibration.txt")
    layers = list(layers_of(model))
    sizes = rounding_inputs.sizes_of(layers, activation_shapes(model), len(images))
    reading = rounding_inputs.Reading(
        tmp_path / "model.onnx", Counter(model), False, settings.preprocess, None, settings.positions, 1, 1, False
    )
    held = rounding_inputs.collect(reading, layers, sizes, images, None, lambda: None)
    assert isinstance(held["gemm0"], Covariance)
    assert isinstance(held["gemm1"], list)  # too wide for a covariance
    assert len(held["gemm1"]) == len(images)
