"""Thresholds: the range of every quantized activation, chosen from the calibration by the mode of the build file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from pipeline.artefacts import write_json
from pipeline.config.build_file import BuildConfig, CalibrateMode, QuantizeConfig
from pipeline.quant import qmath, search
from pipeline.quant.observers import Observer, ObserverSet
from pipeline.quant.pixels import LIMIT, PIXELS
from pipeline.quant.qmath import Range
from pipeline.stages.artefact_names import OBSERVERS, THRESHOLDS

Rule = Callable[[Observer, QuantizeConfig], Range]

_RULES: Mapping[CalibrateMode, Rule] = {
    CalibrateMode.PERCENTILE: lambda seen, config: qmath.percentile_range(
        seen.counts, seen.lowest, seen.highest, config.percentile
    ),
    CalibrateMode.MAX: lambda seen, config: qmath.max_range(seen.lowest, seen.highest),
    CalibrateMode.MSE: lambda seen, config: search.mse_range(seen.counts, seen.lowest, seen.highest),
    CalibrateMode.KL_DIVERGENCE: lambda seen, config: search.divergence_range(seen.counts, seen.lowest, seen.highest),
}


def identity(cfg: BuildConfig) -> object:
    """Return what this stage's outcome depends on beside its inputs."""
    quantize = cfg.backend.quantize
    mode = quantize.calibrate_mode
    return [mode.value, quantize.percentile if mode is CalibrateMode.PERCENTILE else None]


def run(cfg: BuildConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Write `thresholds.json`: tensor name -> low and high, in the tensor's units."""
    observers, _ = ObserverSet.load(inputs["calibrate"] / OBSERVERS)
    quantize = cfg.backend.quantize
    rule = _RULES[quantize.calibrate_mode]
    ranges = {name: asdict(rule(observer, quantize)) for name, observer in observers.observers.items()}
    if PIXELS in ranges:
        ranges[PIXELS] = asdict(Range(0.0, LIMIT))  # a step a level, whichever of them these images have
    write_json(out / THRESHOLDS, ranges)
