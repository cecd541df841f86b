"""Convert: the model of a float16 or float32 package, checked against the exported one before it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from pipeline import agreement
from pipeline.artefacts import write_json
from pipeline.config.build_file import BuildConfig, Precision
from pipeline.config.vdsp import to_vdsp_dict
from pipeline.data.calibration_list import read_calibration_list
from pipeline.data.label_check import find_doubts
from pipeline.data.labels import read_classes
from pipeline.quant.float16 import to_float16
from pipeline.runtimes.base import Runtime
from pipeline.stages.artefact_names import CALIBRATION, CHECK, CLASSES, MODEL, write_notes

_ADVICE = "the network needs more range than float16 has: set backend.dtype: fp32"


def identity(cfg: BuildConfig) -> object:
    """Return what this stage's outcome depends on beside its inputs."""
    return [cfg.backend.dtype.value, to_vdsp_dict(cfg.preprocess)]


def run(cfg: BuildConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the model and its comparison with float32, on noise where the build has no images.

    Raises:
        DataError: in some runtime it no longer answers as the float32 model does.
    """
    float32 = inputs["export"] / MODEL
    model = onnx.load(float32)
    onnx.save(to_float16(model) if cfg.backend.dtype is Precision.FP16 else model, out / MODEL)
    listed = read_calibration_list(inputs["calibset"] / CALIBRATION) if "calibset" in inputs else []
    batches = agreement.prepare(listed, cfg.preprocess) if listed else agreement.noise(cfg.preprocess)
    expected = agreement.infer(Runtime.ONNXRUNTIME, float32, batches)
    if listed:
        classes = read_classes(inputs["calibset"] / CLASSES)
        write_notes(out, find_doubts(listed[: len(expected)], expected, classes))
    precision = cfg.backend.dtype.value
    found = agreement.check(out / MODEL, batches, expected, what=precision, advice=_ADVICE)
    write_json(out / CHECK, {"agreement": found})
