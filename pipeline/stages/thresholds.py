"""Thresholds: the range of every quantized activation, chosen from the calibration by the mode of the build file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.artefacts import write_json
from pipeline.config.build_config import BuildConfig
from pipeline.config.choices import CalibrateMode
from pipeline.quant import qmath, search
from pipeline.quant.observers import Observer, ObserverSet
from pipeline.quant.pixels import LIMIT, PIXELS
from pipeline.quant.qmath import Range
from pipeline.stages.artefact_names import OBSERVERS, THRESHOLDS


@dataclass(frozen=True, kw_only=True)
class Settings:
    mode: CalibrateMode
    percentile: float  # share of values kept, in %, in (50, 100]; 100 for the modes that have none


Rule = Callable[[Observer, float], Range]  # the values seen, the percentile

_RULES: Mapping[CalibrateMode, Rule] = {
    CalibrateMode.PERCENTILE: lambda seen, percentile: qmath.percentile_range(
        seen.counts, seen.lowest, seen.highest, percentile
    ),
    CalibrateMode.MAX: lambda seen, _: qmath.max_range(seen.lowest, seen.highest),
    CalibrateMode.MSE: lambda seen, _: search.mse_range(seen.counts, seen.lowest, seen.highest),
    CalibrateMode.KL_DIVERGENCE: lambda seen, _: search.divergence_range(seen.counts, seen.lowest, seen.highest),
}


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs."""
    quantize = cfg.backend.quantize
    mode = quantize.calibrate_mode
    return Settings(mode=mode, percentile=quantize.percentile if mode is CalibrateMode.PERCENTILE else 100.0)


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write `thresholds.json`: tensor name -> low and high, in the tensor's units."""
    observers, _ = ObserverSet.load(inputs["calibrate"] / OBSERVERS)
    rule = _RULES[settings.mode]
    ranges = {name: asdict(rule(observer, settings.percentile)) for name, observer in observers.observers.items()}
    if PIXELS in ranges:
        ranges[PIXELS] = asdict(Range(0.0, LIMIT))  # a step a level, whichever of them these images have
    write_json(out / THRESHOLDS, ranges)
