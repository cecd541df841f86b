"""The quantizers that `accuracy.py` compares: an int8 model each, from one float32 model and the same images."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.build_config import BuildConfig
from pipeline.data import preprocess
from pipeline.data.calibration_list import read_calibration_list
from pipeline.data.imagenet import Sample
from pipeline.packages.package import CALIBRATION, Package
from pipeline.runtimes.base import Runtime
from pipeline.terminal.progress import progress_bar

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Made:
    """A quantized model, as the process that made it describes it."""

    model: str
    images: int  # it was calibrated on
    settings: str
    complete: bool = True  # False: parts of the work had been done before, so its time and memory say nothing


@dataclass(frozen=True)
class Task:
    """What ONNX Runtime and NNCF start from."""

    float32: Path
    package: Package
    images: int
    percentile_images: int
    out: Path

    def calibration(self, count: int) -> list[Sample]:
        """Return `count` of the build's calibration images, spread over its list, which is in order of class."""
        listed = read_calibration_list(self.package.folder / CALIBRATION)
        count = min(count, len(listed))
        return [listed[index * len(listed) // count] for index in range(count)]

    def loader(self) -> Callable[[Sample], Float32]:
        """Return the function that makes float32 [1, C, H, W] of an image."""
        spec = self.package.preprocess()
        return lambda image: preprocess.apply(spec, preprocess.decode(image.source.content()))[None]


@dataclass(frozen=True)
class Reader:
    """The images one by one, as `quantize_static` asks for them."""

    feeds: Iterator[dict[str, Float32]]

    def get_next(self) -> dict[str, Float32] | None:
        return next(self.feeds, None)


_IMAGES = ("sample", "calibset", "image2npz")  # stages that are no part of making a model


def make_ours(cfg: BuildConfig, overrides: Sequence[str] = ()) -> Made:
    """Build the package; `model` is its prefix. `overrides`, which `cfg` follows already, are named in the settings."""
    from pipeline.building import build

    steps: list[str] = []

    def say(line: str) -> None:
        steps.append(line)
        print(line, flush=True)

    built = build(cfg, say)
    complete = not any(
        line.endswith("up to date") and not any(f"] {name}:" in line for name in _IMAGES) for line in steps
    )
    settings = ", ".join((f"this pipeline, the build file's settings for {cfg.name}", *overrides, "export included"))
    return Made(str(built.prefix), cfg.dataset.sampler.get_data_num, settings, complete)


def make_by_onnxruntime(
    task: Task, method: str, count: int, options: dict[str, Any], *, reduce_range: bool = False
) -> Made:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, out = task.out / "prepared.onnx", task.out / "model.onnx"
    quant_pre_process(str(task.float32), str(prepared), skip_symbolic_shape=True)
    graph = onnx.load(prepared).graph
    images, load = task.calibration(count), task.loader()
    with progress_bar(len(images), f"ONNX Runtime, {method}", "img") as progress:

        def feeds() -> Iterator[dict[str, Float32]]:
            for image in images:
                yield {graph.input[0].name: load(image)}
                progress.update()

        quantization.quantize_static(
            str(prepared),
            str(out),
            Reader(feeds()),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=[node.name for node in graph.node if node.op_type == "Softmax"],
            calibrate_method=quantization.CalibrationMethod[method],
            # The answer stays float32, as in the other two; in 8 bits it would hide what else is lost.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"], **options},
        )
    weights = "7-bit weights" if reduce_range else "int8 weights"
    settings = f"QDQ, uint8 activations, {weights} by channel, after quant_pre_process, answer and softmax in float32"
    return Made(str(out), len(images), f"ONNX Runtime quantize_static, {method} {options}, {settings}")


# Not CalibMaxIntermediateOutputs, which forgets images (findings/minmax-forgets-images.sh); extremes are small.
_MINMAX = {"CalibMovingAverage": False}


def make_by_minmax(task: Task) -> Made:
    return make_by_onnxruntime(task, "MinMax", task.images, _MINMAX)


def make_by_percentile(task: Task) -> Made:
    made = make_by_onnxruntime(task, "Percentile", task.percentile_images, {"CalibPercentile": 99.999})
    return replace(made, settings=f"{made.settings}; {made.images} images only, it keeps every activation of each")


def make_by_minmax_7_bits(task: Task) -> Made:
    return make_by_onnxruntime(task, "MinMax", task.images, _MINMAX, reduce_range=True)


def make_by_nncf(
    task: Task, preset: str | None = None, *, transformer: bool = False, fast_bias_correction: bool = True
) -> Made:
    nncf = import_nncf()
    import openvino

    images = task.calibration(task.images)
    given = {} if preset is None else {"preset": nncf.QuantizationPreset[preset]}
    given |= {"model_type": nncf.ModelType.TRANSFORMER} if transformer else {}
    given |= {} if fast_bias_correction else {"fast_bias_correction": False}
    model = openvino.convert_model(task.float32)  # read_model: no bias is corrected (findings/nncf-skips-biases.sh)
    quantized = nncf.quantize(model, nncf.Dataset(images, task.loader()), subset_size=len(images), **given)
    out = task.out / "model.xml"
    openvino.save_model(quantized, str(out), compress_to_fp16=False)
    settings = f"NNCF {nncf.__version__}, OpenVINO model, preset {preset or 'default'}"
    settings += ", model_type TRANSFORMER" if transformer else ""
    return Made(str(out), len(images), settings + ("" if fast_bias_correction else ", fast_bias_correction=False"))


def make_by_nncf_transformer(task: Task) -> Made:
    return make_by_nncf(task, transformer=True)


def make_by_nncf_mixed(task: Task) -> Made:
    return make_by_nncf(task, "MIXED")


def make_by_nncf_bias(task: Task) -> Made:
    return make_by_nncf(task, fast_bias_correction=False)


def make_by_nncf_control(task: Task, *, same_answers: bool = False) -> Made:
    """Let NNCF give layers back to float32 until at most 1% of images of the calibration list are lost.

    It is calibrated on half of the images and judged on the other half, by top-1, or by the answers of float32.
    """
    nncf = import_nncf()
    import openvino

    model, load = openvino.convert_model(task.float32), task.loader()
    pairs = [(load(sample), sample.class_index) for sample in task.calibration(task.images)]
    if same_answers:
        float32 = openvino.compile_model(model, "CPU")
        pairs = [(image, int(float32(image)[0].argmax())) for image, _ in pairs]

    def validate(compiled: Any, data: Iterable[tuple[Float32, int]]) -> tuple[float, list[float]]:
        right = [float(compiled(image)[0].argmax() == expected) for image, expected in data]
        return sum(right) / len(right), right

    calibration, validation = pairs[::2], pairs[1::2]
    quantized = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(calibration, lambda pair: pair[0]),
        nncf.Dataset(validation, lambda pair: pair[0]),
        validate,
        subset_size=len(calibration),
    )
    out = task.out / "model.xml"
    openvino.save_model(quantized, str(out), compress_to_fp16=False)
    judged = f"{'answers of float32' if same_answers else 'top-1'} on {len(validation)} images, max_drop .01 (default)"
    settings = f"NNCF {nncf.__version__}, OpenVINO model, quantize_with_accuracy_control by {judged}"
    return Made(str(out), len(calibration), settings)


def make_by_nncf_control_answers(task: Task) -> Made:
    return make_by_nncf_control(task, same_answers=True)


def make_by_nncf_onnx(task: Task) -> Made:
    nncf = import_nncf()
    import onnx

    images, load = task.calibration(task.images), task.loader()
    model = onnx.load(task.float32)
    name = model.graph.input[0].name
    dataset = nncf.Dataset(images, lambda image: {name: load(image)})
    out = task.out / "model.onnx"
    onnx.save(nncf.quantize(model, dataset, subset_size=len(images)), out)
    return Made(str(out), len(images), f"NNCF {nncf.__version__}, ONNX model, preset default")


def import_nncf() -> Any:
    # First: it keeps OpenVINO's telemetry, which NNCF would use too, from being imported.
    import pipeline.runtimes.ov  # noqa: F401

    return importlib.import_module("nncf")


def float32_model(package: Package) -> Path:
    path = package.workspace_file("float32_model")
    assert path is not None  # the build has just made it
    return path


EITHER = (Runtime.OPENVINO, Runtime.ONNXRUNTIME)
ROWS: dict[str, tuple[Callable[[Task], Made], tuple[Runtime, ...]]] = {  # name: how it is made, what can run it
    "ort-minmax": (make_by_minmax, EITHER),
    "ort-minmax-7-bits": (make_by_minmax_7_bits, EITHER),
    "ort-percentile": (make_by_percentile, EITHER),
    "nncf": (make_by_nncf, EITHER[:1]),
    "nncf-transformer": (make_by_nncf_transformer, EITHER[:1]),
    "nncf-mixed": (make_by_nncf_mixed, EITHER[:1]),
    "nncf-bias": (make_by_nncf_bias, EITHER[:1]),
    "nncf-control": (make_by_nncf_control, EITHER[:1]),
    "nncf-control-answers": (make_by_nncf_control_answers, EITHER[:1]),
    "nncf-onnx": (make_by_nncf_onnx, EITHER),
}
