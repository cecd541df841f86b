"""The data flow of a build: which stage reads what, and what its outcome depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipeline.config.build_config import BuildConfig
from pipeline.config.choices import CalibrateMode, Precision, WeightRounding
from pipeline.prepare import frontends
from pipeline.proof import speed
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
    place,
    prove,
    quantize,
    ranges,
    rounding,
    sample,
    thresholds,
    trial,
    tune,
)

S = TypeVar("S")


@dataclass(frozen=True)
class Stage(Generic[S]):
    """One row of the data flow: (settings, artefacts it needs) -> the folder it fills."""

    name: str
    needs: tuple[str, ...]  # earlier stages whose artefacts it reads, as far as they ran
    settings: Callable[[BuildConfig], S]  # everything else its outcome depends on; see `stages.settings`
    run: Callable[[S, Mapping[str, Path], Path], None]
    when: Callable[[BuildConfig], bool] = lambda cfg: True
    keep_partial: bool = False  # an interrupted run is resumed
    fetches: Callable[[BuildConfig], bool] = lambda cfg: False  # a download comes before its settings are known
    compared: bool = True  # its files are compared with their digests before another stage reads them
    shows_work: bool = False  # its model shows what the network costs, for the time that is left
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
    return _is_int8(cfg) and speed.budget_seconds() > 0


def _measures_ranges(cfg: BuildConfig) -> bool:
    return _is_int8(cfg) and cfg.backend.quantize.calibrate_mode is CalibrateMode.MEASURED


def _is_float(cfg: BuildConfig) -> bool:
    return not _is_int8(cfg)


def _has_images(cfg: BuildConfig) -> bool:
    """Float packages need none; where there are some, they label the classes and check the model."""
    return cfg.uses_sample or cfg.dataset.path is not None


def _has_evaluation(cfg: BuildConfig) -> bool:
    return cfg.uses_sample or cfg.evaluation.path is not None


_GIVEN = ("export", "calibset", "pixels", "equalize", "arrange")


_RANGED = (*_GIVEN, "calibrate", "thresholds")


_MEASURED = (*_RANGED, "round", "place")


_QUANTIZED = (*_MEASURED, "ranges")


_PROVEN = (*_GIVEN, "quantize", "convert")


_PACKED = (
    *("calibset", "export", "pixels", "equalize", "arrange", "thresholds", "place", "ranges", "quantize", "convert"),
    *("prove", "trial"),
    "image2npz",
)


STAGES: tuple[Stage[Any], ...] = (
    Stage("sample", (), sample.take_settings, sample.run, when=lambda cfg: cfg.uses_sample),
    Stage("calibset", ("sample",), calibset.take_settings, calibset.run, when=_has_images, version=2),
    Stage(
        "image2npz",
        ("sample", "calibset"),
        image2npz.take_settings,
        image2npz.run,
        _has_evaluation,
        keep_partial=True,
        compared=False,  # of the npz only the names go into a package, and hashing 50,000 of them takes a minute
        version=2,
    ),
    Stage(
        "export",
        ("calibset",),
        export.take_settings,
        export.run,
        fetches=frontends.is_to_be_fetched,
        shows_work=True,
        version=20,
    ),
    Stage("pixels", ("export",), pixels.take_settings, pixels.run, _takes_pixels, version=3),
    Stage("equalize", ("calibset", "export", "pixels"), equalize.take_settings, equalize.run, _equalizes, version=11),
    Stage("arrange", ("export", "pixels", "equalize"), arrange.take_settings, arrange.run, _is_int8, version=4),
    Stage("round", _GIVEN, rounding.take_settings, rounding.run, _rounds_weights, keep_partial=True, version=16),
    Stage(
        "calibrate", (*_GIVEN, "round"), calibrate.take_settings, calibrate.run, _is_int8, keep_partial=True, version=17
    ),
    Stage("thresholds", ("calibrate",), thresholds.take_settings, thresholds.run, _is_int8, version=2),
    Stage("place", (*_RANGED, "round"), place.take_settings, place.run, _is_int8, version=7),
    Stage("ranges", _MEASURED, ranges.take_settings, ranges.run, _measures_ranges, version=2),
    Stage("tune", _QUANTIZED, tune.take_settings, tune.run, _tunes, keep_partial=True, version=13),
    Stage("quantize", (*_QUANTIZED, "tune"), quantize.take_settings, quantize.run, _is_int8, version=19),
    Stage("convert", ("export", "calibset"), convert.take_settings, convert.run, _is_float, version=3),
    Stage("prove", _PROVEN, prove.take_settings, prove.run, version=5),
    Stage("trial", ("export", "quantize", "prove"), trial.take_settings, trial.run, _is_tried),
    Stage("package", _PACKED, package.take_settings, package.run, version=3),
)
