"""The data flow of a build: which stage reads what, and what its outcome depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.build_file import BuildConfig, Precision, WeightRounding
from pipeline.stages import (
    arrange,
    calibrate,
    calibset,
    convert,
    equalize,
    export,
    image2npz,
    package,
    pixels,
    prove,
    quantize,
    rounding,
    sample,
    thresholds,
    trial,
    tune,
)

Run = Callable[[BuildConfig, Mapping[str, Path], Path], None]


@dataclass(frozen=True)
class Stage:
    """One row of the data flow: (config, artefacts it needs) -> the folder it fills."""

    name: str
    needs: tuple[str, ...]  # earlier stages whose artefacts it reads, as far as they ran
    identity: Callable[[BuildConfig], Any]  # everything else its outcome depends on; files by content
    run: Run
    when: Callable[[BuildConfig], bool] = lambda cfg: True
    keep_partial: bool = False  # an interrupted run goes on where it was
    version: int = 1  # raised when the same inputs start to give other bytes


def _is_int8(cfg: BuildConfig) -> bool:
    return cfg.backend.dtype is Precision.INT8


def _takes_pixels(cfg: BuildConfig) -> bool:
    return _is_int8(cfg) and cfg.backend.quantize.pixel_input


def _equalizes(cfg: BuildConfig) -> bool:
    return _is_int8(cfg) and cfg.backend.quantize.equalization


def _rounds_weights(cfg: BuildConfig) -> bool:
    return _is_int8(cfg) and cfg.backend.quantize.weight_rounding is WeightRounding.SECOND_ORDER


def _tunes(cfg: BuildConfig) -> bool:
    return _is_int8(cfg) and cfg.accuracy is not None


def _is_tried(cfg: BuildConfig) -> bool:
    return _is_int8(cfg) and trial.seconds() > 0


def _is_float(cfg: BuildConfig) -> bool:
    return not _is_int8(cfg)


def _has_images(cfg: BuildConfig) -> bool:
    """Float packages need none; where there are some, they label the classes and check the model."""
    return cfg.uses_sample or cfg.dataset.path is not None


def _has_evaluation(cfg: BuildConfig) -> bool:
    return cfg.uses_sample or cfg.evaluation.path is not None


_GIVEN = ("export", "calibset", "pixels", "equalize", "arrange")


_QUANTIZED = (*_GIVEN, "calibrate", "thresholds", "round")


_PROVEN = ("calibset", "export", "calibrate", "quantize", "convert")


_PACKED = (
    *("calibset", "export", "pixels", "equalize", "arrange", "thresholds", "quantize", "convert", "prove", "trial"),
    "image2npz",
)


STAGES = (
    Stage("sample", (), sample.identity, sample.run, when=lambda cfg: cfg.uses_sample),
    Stage("calibset", ("sample",), calibset.identity, calibset.run, when=_has_images, version=2),
    Stage("export", ("calibset",), export.identity, export.run, version=7),
    Stage("pixels", ("export",), pixels.identity, pixels.run, _takes_pixels, version=2),
    Stage("equalize", ("calibset", "export", "pixels"), equalize.identity, equalize.run, _equalizes, version=3),
    Stage("arrange", ("export", "pixels", "equalize"), arrange.identity, arrange.run, _is_int8, version=2),
    Stage("calibrate", _GIVEN, calibrate.identity, calibrate.run, _is_int8, keep_partial=True, version=5),
    Stage("thresholds", ("calibrate",), thresholds.identity, thresholds.run, _is_int8),
    Stage("round", _GIVEN, rounding.identity, rounding.run, _rounds_weights, keep_partial=True, version=4),
    Stage("tune", _QUANTIZED, tune.identity, tune.run, _tunes, keep_partial=True, version=2),
    Stage("quantize", (*_QUANTIZED, "tune"), quantize.identity, quantize.run, _is_int8, version=7),
    Stage("convert", ("export", "calibset"), convert.identity, convert.run, _is_float, version=2),
    Stage("prove", _PROVEN, prove.identity, prove.run),
    Stage("trial", ("export", "quantize", "prove"), trial.identity, trial.run, _is_tried),
    Stage(
        "image2npz",
        ("sample", "calibset"),
        image2npz.identity,
        image2npz.run,
        _has_evaluation,
        keep_partial=True,
        version=2,
    ),
    Stage("package", _PACKED, package.identity, package.run, version=2),
)
