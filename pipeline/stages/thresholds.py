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
from pipeline.quant.ranges import PERCENTILES, by_percentile, choose_percentile, ranges_by
from pipeline.stages.artefact_names import FIGURES, OBSERVERS, THRESHOLDS, write_notes


@dataclass(frozen=True, kw_only=True)
class Settings:
    mode: CalibrateMode
    # Share of values kept, in %, in (50, 100]; 100 for the modes that have none; None: chosen from the histograms.
    percentile: float | None


Rule = Callable[[Observer], Range]

_RULES: Mapping[CalibrateMode, Callable[[float], Rule]] = {  # of a percentile, which some need none of
    CalibrateMode.PERCENTILE: by_percentile,
    CalibrateMode.MEASURED: by_percentile,  # to begin with; stage `ranges` tries those beside it
    CalibrateMode.MAX: lambda _: lambda seen: qmath.max_range(seen.lowest, seen.highest),
    CalibrateMode.MSE: lambda _: lambda seen: search.mse_range(seen.counts, seen.lowest, seen.highest),
    CalibrateMode.KL_DIVERGENCE: lambda _: lambda seen: search.divergence_range(seen.counts, seen.lowest, seen.highest),
}


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs."""
    quantize = cfg.backend.quantize
    percentiles = {CalibrateMode.PERCENTILE: quantize.percentile, CalibrateMode.MEASURED: None}
    return Settings(mode=quantize.calibrate_mode, percentile=percentiles.get(quantize.calibrate_mode, 100.0))


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write `thresholds.json`: tensor name -> low and high, in the tensor's units; and which percentile was chosen."""
    seen, _ = ObserverSet.load(inputs["calibrate"] / OBSERVERS)
    percentile = choose_percentile(seen) if settings.percentile is None else settings.percentile
    found = ranges_by(seen, _RULES[settings.mode](percentile))
    write_json(out / THRESHOLDS, {name: asdict(each) for name, each in found.items()})
    if settings.percentile is None:
        write_json(out / FIGURES, {"percentile": percentile})
        if settings.mode is CalibrateMode.PERCENTILE and percentile != PERCENTILES[0]:
            write_notes(out, [f"ranges of percentile {percentile:g}: by the histograms, clearly less noise so"])
