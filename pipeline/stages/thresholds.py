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
from pipeline.quant.qmath import Range
from pipeline.quant.ranges import PERCENTILES, by_percentile, ranges_by
from pipeline.stages.artefact_names import OBSERVERS, THRESHOLDS


@dataclass(frozen=True, kw_only=True)
class Settings:
    mode: CalibrateMode
    percentile: float  # share of values kept, in %, in (50, 100]; 100 for the modes that have none


Rule = Callable[[Observer], Range]

_RULES: Mapping[CalibrateMode, Callable[[float], Rule]] = {  # of a percentile, which some need none of
    CalibrateMode.PERCENTILE: by_percentile,
    CalibrateMode.MEASURED: by_percentile,  # to begin with; stage `ranges` tries others
    CalibrateMode.MAX: lambda _: lambda seen: qmath.max_range(seen.lowest, seen.highest),
    CalibrateMode.MSE: lambda _: lambda seen: search.mse_range(seen.counts, seen.lowest, seen.highest),
    CalibrateMode.KL_DIVERGENCE: lambda _: lambda seen: search.divergence_range(seen.counts, seen.lowest, seen.highest),
}


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs."""
    quantize = cfg.backend.quantize
    percentiles = {CalibrateMode.PERCENTILE: quantize.percentile, CalibrateMode.MEASURED: PERCENTILES[0]}
    return Settings(mode=quantize.calibrate_mode, percentile=percentiles.get(quantize.calibrate_mode, 100.0))


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write `thresholds.json`: tensor name -> low and high, in the tensor's units."""
    seen, _ = ObserverSet.load(inputs["calibrate"] / OBSERVERS)
    found = ranges_by(seen, _RULES[settings.mode](settings.percentile))
    write_json(out / THRESHOLDS, {name: asdict(each) for name, each in found.items()})
