"""Prove: compares a model with float32, in exact arithmetic and in every installed runtime on this CPU.

A runtime that dies, hangs or refuses the model is left out. A useless model ends the build here, before anything is
published.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artefacts import write_json
from pipeline.config.build_config import BuildConfig
from pipeline.config.choices import CalibrateMode, Precision
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.data.calibration_list import read_calibration_list
from pipeline.data.imagenet import Sample
from pipeline.data.label_check import find_doubts
from pipeline.data.labels import read_classes
from pipeline.errors import DataError
from pipeline.host import hardware
from pipeline.onnx_models.scores import Scores
from pipeline.proof import agreement, verdicts
from pipeline.proof.agreement import Answers, Float32
from pipeline.proof.verdicts import Figures, Finding, Verdict
from pipeline.runtimes.base import Batch, Runtime
from pipeline.runtimes.opening import installed_runtimes, version_of
from pipeline.stages.artefact_names import (
    CALIBRATION,
    CHECK,
    CLASSES,
    GIVEN,
    MODEL,
    float32_model,
    read_scores,
    write_notes,
)

_TIGHT_PERCENTILE = 99.99  # below it, ranges clip what networks need
_CHECKED_IMAGES = 4  # that the exported model answers too
# Relative to the outputs' norm. Sums in another order differ by 1e-5, and by more where the network itself rounds.
_LARGEST_SHARE = 3e-2


@dataclass(frozen=True, kw_only=True)
class RuntimeHere:
    """A runtime on this machine."""

    name: Runtime
    version: str
    instruction_sets: tuple[str, ...]
    isa_cap: str  # what restricts it to fewer of them; "": nothing


@dataclass(frozen=True, kw_only=True)
class Settings:
    precision: Precision
    cause: str  # the most likely cause of noise in the model, and what to do
    preprocess: PreprocessSpec
    runtimes: tuple[RuntimeHere, ...]  # those installed


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs: texts, and the runtimes and CPU."""
    runtimes = tuple(
        RuntimeHere(
            name=runtime,
            version=version_of(runtime),
            instruction_sets=tuple(hardware.instruction_sets(runtime.value)),
            isa_cap=hardware.isa_cap(runtime.value),
        )
        for runtime in installed_runtimes()
    )
    return Settings(precision=cfg.backend.dtype, cause=_model_cause(cfg), preprocess=cfg.preprocess, runtimes=runtimes)


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the figures and verdicts.

    Raises:
        DataError: the model is useless, or no runtime computes it.
    """
    precision = settings.precision.value
    model = inputs["quantize" if "quantize" in inputs else "convert"] / MODEL
    checked = _checked(settings, inputs)
    if "calibset" in inputs and "quantize" not in inputs:  # which looks at the labels of all images
        listed = read_calibration_list(inputs["calibset"] / CALIBRATION)
        shown = [listed[index] for index in agreement.choose(len(listed))]
        write_notes(out, find_doubts(shown, checked.expected, read_classes(inputs["calibset"] / CLASSES)))
    exact = agreement.run_exact(model, checked.batches)
    exact_figures, found = _prove_exact(settings, checked, exact)
    if exact_figures is not None and found.verdict is Verdict.REFUSED:
        images = "calibration images" if "calibset" in inputs else "images of noise"
        raise DataError(
            f"the {precision} model collapsed: in exact arithmetic it gives the answer of float32 on "
            f"{exact_figures.same_answers} of {exact_figures.images} {images}, "
            f"{exact_figures.decibels:.1f} dB; {found.cause}"
        )
    runtimes = {each.name.value: _prove_runtime(settings, each, model, checked, exact) for each in settings.runtimes}
    _check_any_is_of_use(precision, runtimes)
    agreeing = {
        name: {"images": each["float32"]["images"], "agreeing": each["float32"]["same_answers"]}
        for name, each in runtimes.items()
        if "float32" in each
    }
    exact_record = verdicts.record(exact_figures, found) if exact_figures else found.as_dict()
    proven = {"given": _given(inputs), "exact": exact_record, "runtimes": runtimes}
    write_json(out / CHECK, {"agreement": agreeing, "proof": proven})


@dataclass(frozen=True)
class _Checked:
    """The images that a model is checked with."""

    batches: Sequence[Batch]  # images as the model takes them
    expected: Float32  # float32's outputs for them, [images, classes]
    scores: Scores  # what the outputs are

    def compare(self, reference: Float32, outputs: Float32) -> Figures:
        return verdicts.compare(reference, outputs, self.scores)


def _checked(settings: Settings, inputs: Mapping[str, Path]) -> _Checked:
    """Return the images that the model is checked on, and float32's outputs for them.

    Raises:
        DataError: an image is gone, or float32 itself cannot be computed.
    """
    scores = read_scores(inputs["export"])
    if "calibset" in inputs:
        listed = read_calibration_list(inputs["calibset"] / CALIBRATION)
        chosen = agreement.choose(len(listed))
        raw = "quantize" in inputs and json.loads((inputs["quantize"] / CHECK).read_text())["input"] == "uint8"
        batches = agreement.prepare([listed[index] for index in chosen], settings.preprocess, raw=raw)
    else:
        batches = agreement.make_noise(settings.preprocess)
    if "quantize" in inputs:
        expected = agreement.float32_answers(float32_model(inputs), itertools.chain.from_iterable(batches))
        if float32_model(inputs).parent != inputs["export"]:
            images = [listed[index] for index in chosen[:_CHECKED_IMAGES]]
            _check_against_export(inputs["export"] / MODEL, settings.preprocess, images, expected)
        return _Checked(batches, expected, scores)
    float32 = agreement.run_exact(inputs["export"] / MODEL, batches)
    if float32.outputs is None:
        raise DataError(f"{inputs['export'] / MODEL}: the float32 model cannot be computed: it {float32.reason}")
    return _Checked(batches, float32.outputs, scores)


def _check_against_export(model: Path, spec: PreprocessSpec, images: Sequence[Sample], made: Float32) -> None:
    """Raise DataError unless the model that was made of the exported one for int8 computes what that does.

    The int8 model is compared with the former only, so an error of the stages between the two, or a stale artefact,
    would go unnoticed.

    Args:
        made: answers of the model that was made, of these images and others that follow.
    """
    prepared = (preprocess.load(spec, image.source.content(), raw=False) for image in images)
    expected = agreement.float32_answers(model, prepared)
    largest = float(np.abs(expected).max())
    error = made[: len(images)] - expected
    difference = float(np.abs(error).max())
    if not np.linalg.norm(error) <= _LARGEST_SHARE * np.linalg.norm(expected):
        raise DataError(
            f"{model}: the model made of it for int8 differs by {difference:.2g} on outputs of up to {largest:.2g}, "
            "which it must not; delete .cache/ in the workspace; or --set backend.quantize.pixel_input=false "
            "and --set backend.quantize.equalization=false, and report this"
        )


def _prove_exact(settings: Settings, checked: _Checked, exact: Answers) -> tuple[Figures | None, Finding]:
    if exact.outputs is None:
        return None, Finding(Verdict.LOST, exact.reason)
    figures = checked.compare(checked.expected, exact.outputs)
    found = verdicts.judge_model(figures, settings.cause)
    return figures, verdicts.judge_reference(checked.expected) if found.verdict is Verdict.GOOD else found


def _prove_runtime(
    settings: Settings, here: RuntimeHere, model: Path, checked: _Checked, exact: Answers
) -> dict[str, Any]:
    """Return the record of a runtime: beside exact arithmetic, and below `float32` beside float32."""
    int8 = settings.precision is Precision.INT8
    exact = agreement.exact_of(here.name, model, checked.batches, exact)
    answers = agreement.run_in(here.name, model, checked.batches, counts=int8, exact_seconds=exact.seconds)
    setting = {"version": here.version, "instruction_sets": list(here.instruction_sets)}
    if answers.outputs is None:
        return {**Finding(Verdict.LOST, answers.reason).as_dict(), **setting}
    beside_float32 = checked.compare(checked.expected, answers.outputs)
    if exact.outputs is None:
        found, figures = verdicts.judge_model(beside_float32, settings.cause), beside_float32
    else:
        figures = checked.compare(exact.outputs, answers.outputs)
        wanted = checked.compare(checked.expected, exact.outputs)
        found = verdicts.judge_runtime(beside_float32, wanted, agreement.kernel_cause(here.name))
    record = {**verdicts.record(figures, found), "float32": verdicts.plain(beside_float32)}
    return {**record, "executed": answers.executed, **setting}


def _check_any_is_of_use(precision: str, runtimes: Mapping[str, Mapping[str, Any]]) -> None:
    useless = {Verdict.REFUSED.value, Verdict.LOST.value}
    if any(each["verdict"] not in useless for each in runtimes.values()):
        return
    reasons = []
    for name, each in runtimes.items():
        lost = each["verdict"] == Verdict.LOST.value
        reasons.append(f"{name} {each['cause']}" if lost else f"in {name}, {each['cause']}")
    raise DataError(f"the {precision} model cannot be used in any installed runtime: {'. '.join(reasons)}")


def _given(inputs: Mapping[str, Path]) -> dict[str, Any] | None:
    """Return the comparison of the exported model with the file it was made of; None where there was no file."""
    path = inputs["export"] / GIVEN
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found


def _model_cause(cfg: BuildConfig) -> str:
    """Return the most likely cause of noise in the model, and what to do."""
    if cfg.backend.dtype is Precision.FP32:
        return "float32 must be equal to float32: report this with the file"
    if cfg.backend.dtype is Precision.FP16:
        return "the network needs more range than float16 has: set backend.dtype: fp32"
    quantize = cfg.backend.quantize
    percentile = quantize.percentile if quantize.calibrate_mode is CalibrateMode.PERCENTILE else None
    if percentile is not None and percentile < _TIGHT_PERCENTILE:
        return (
            "the ranges clip too much of the activations: raise backend.quantize.percentile "
            f"(now {percentile:g}) or set calibrate_mode: max"
        )
    if not quantize.quantize_per_channel:
        return "all filters of a layer share a scale: set backend.quantize.quantize_per_channel: true"
    return (
        "8 bits are too few for a part of the network: `analyze` shows which; backend.quantize.exclude_layers or "
        "accuracy.min_agreement leaves it in float"
    )
