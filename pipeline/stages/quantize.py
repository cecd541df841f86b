"""Quantize: the int8 model from the float32 model and the thresholds, checked against float32 before it is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from pipeline import preprocess
from pipeline.artefacts import write_json
from pipeline.config.build_file import BuildConfig
from pipeline.config.vdsp import to_vdsp_dict
from pipeline.data.calibration_list import read_calibration_list
from pipeline.errors import DataError
from pipeline.hardware import available_cores
from pipeline.progress import progress_bar
from pipeline.quant import qdq
from pipeline.quant.qmath import Range
from pipeline.runtimes.base import Runtime, installed_runtimes, open_backend, place
from pipeline.stages.artefact_names import CALIBRATION, CHECK, MODEL, OUTPUTS, THRESHOLDS

_CHECK_IMAGES = 64
_CHECK_BATCH = 8
# Sound int8 models of ResNets agree with float32 on 95% and more; below this the model is of no use to anybody.
_LEAST_AGREEMENT = 0.5

Float32 = npt.NDArray[np.float32]


def identity(cfg: BuildConfig) -> object:
    """Return what this stage's outcome depends on beside its inputs."""
    quantize = cfg.backend.quantize
    excluded = [list(quantize.skip_conv_layers), list(quantize.exclude_layers)]
    return [quantize.quantize_per_channel, excluded, to_vdsp_dict(cfg.preprocess)]


def run(cfg: BuildConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the int8 model and its comparison with float32.

    Raises:
        DataError: in some runtime it no longer answers as the float32 model does.
    """
    ranges = json.loads((inputs["thresholds"] / THRESHOLDS).read_text(encoding="utf-8"))
    quantize = cfg.backend.quantize
    float32 = onnx.load(inputs["export"] / MODEL)
    model = qdq.insert_qdq(
        float32,
        {name: Range(**bounds) for name, bounds in ranges.items()},
        per_channel=quantize.quantize_per_channel,
        float_layers=qdq.find_layers(float32, quantize.skip_conv_layers, quantize.exclude_layers),
    )
    onnx.save(model, out / MODEL)
    check = {"layers": qdq.count_quantized(model), "agreement": _agreement(cfg, inputs, out / MODEL)}
    write_json(out / CHECK, check)


def _agreement(cfg: BuildConfig, inputs: Mapping[str, Path], model: Path) -> dict[str, dict[str, int]]:
    """Return for each installed runtime how many of the first calibration images get the answer of float32."""
    images = read_calibration_list(inputs["calibset"] / CALIBRATION)[:_CHECK_IMAGES]
    expected: Float32 = np.load(inputs["calibrate"] / OUTPUTS, allow_pickle=False)[: len(images)]
    batches = [
        np.stack([preprocess.apply(cfg.preprocess, preprocess.decode(image.source.content())) for image in part])
        for part in (images[start : start + _CHECK_BATCH] for start in range(0, len(images), _CHECK_BATCH))
    ]
    found = {}
    for runtime in installed_runtimes():
        outputs = _infer(runtime, model, batches)
        agreeing = int((outputs.argmax(axis=1) == expected.argmax(axis=1)).sum())
        if not np.isfinite(outputs).all() or agreeing < _LEAST_AGREEMENT * len(images):
            raise DataError(
                f"the int8 model collapsed: in {runtime.value} it gives the answer of float32 on {agreeing} of "
                f"{len(images)} calibration images; raise backend.quantize.percentile "
                f"(now {cfg.backend.quantize.percentile}) or set calibrate_mode: max"
            )
        found[runtime.value] = {"images": len(images), "agreeing": agreeing}
    return found


def _infer(runtime: Runtime, model: Path, batches: list[Float32]) -> Float32:
    placement = place(1, available_cores())
    outputs = []
    with (
        open_backend(runtime, model, batch=_CHECK_BATCH, placement=placement) as backend,
        progress_bar(sum(map(len, batches)), f"check in {runtime.value}", "img") as progress,
    ):
        for batch in batches:
            outputs.append(backend.infer(batch))
            progress.update(len(batch))
    return np.concatenate(outputs)
