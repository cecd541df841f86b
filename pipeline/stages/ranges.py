"""Ranges: of several percentiles, the one whose int8 model answers most like float32 (calibrate_mode `measured`).

A narrower range has finer steps, and cuts off values: how much of both a network bears cannot be told from histograms.
So the model of each percentile is made and run, on calibration images that no weight was fitted to, never on the
evaluation images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx

from pipeline.artefacts import write_json
from pipeline.config.build_config import BuildConfig
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.data.calibration_list import read_calibration_list
from pipeline.errors import BackendError
from pipeline.host import isolated
from pipeline.proof import agreement
from pipeline.proof.judge import CandidateFigures, Judge
from pipeline.quant import pixels
from pipeline.quant.assemble import assemble
from pipeline.quant.observers import ObserverSet
from pipeline.quant.qmath import Range
from pipeline.quant.ranges import PERCENTILES, by_percentile, ranges_by
from pipeline.stages import int8_parts
from pipeline.stages.artefact_names import (
    CALIBRATION,
    FIGURES,
    OBSERVERS,
    THRESHOLDS,
    float32_model,
    read_scores,
    write_notes,
)
from pipeline.terminal.progress import progress_bar

IMAGES = 200  # that models are compared on
# Of the least distance: of ranges as good as each other the widest is taken. Calibration images set the ranges, and
# others reach a little further.
_EQUAL = 1.01
_INSTEAD = "backend.quantize.calibrate_mode: percentile"


@dataclass(frozen=True, kw_only=True)
class Settings:
    parts: int8_parts.PartSettings
    preprocess: PreprocessSpec
    percentiles: tuple[float, ...]  # the widest range first
    images: int  # at most so many are used


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs."""
    parts = int8_parts.take_settings(cfg)
    return Settings(parts=parts, preprocess=cfg.preprocess, percentiles=PERCENTILES, images=IMAGES)


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the ranges of the best percentile, in the form of stage `thresholds`, and what each came to.

    Raises:
        BackendError: no percentile's model runs.
    """
    begun = time.perf_counter()
    float32 = onnx.load(float32_model(inputs))
    parts = int8_parts.load(settings.parts, inputs, float32)
    seen, _ = ObserverSet.load(inputs["calibrate"] / OBSERVERS)
    judge = _judge(settings, inputs, raw=pixels.are_input_of(float32))
    found: dict[float, tuple[dict[str, Range], CandidateFigures]] = {}
    lost: dict[float, str] = {}
    with progress_bar(len(settings.percentiles), "ranges", "model") as progress:
        for percentile in settings.percentiles:
            ranges = ranges_by(seen, by_percentile(percentile))
            model = assemble(float32, replace(parts, ranges=ranges)).model
            try:
                with judge.opened(model) as backend:
                    found[percentile] = ranges, judge.figures(backend, backend)
            except (isolated.LostError, BackendError) as err:
                lost[percentile] = str(err)
            progress.update()
    distances = {percentile: figures.distance for percentile, (_, figures) in found.items()}
    best = _choose({percentile: distance for percentile, distance in distances.items() if math.isfinite(distance)})
    if best is None:
        why = next(iter(lost.values()), "their answers are no numbers")
        raise BackendError(f"none of the int8 models of {len(PERCENTILES)} percentiles runs: {why}; set {_INSTEAD}")
    write_json(out / THRESHOLDS, {name: asdict(each) for name, each in found[best][0].items()})
    write_notes(out, [_describe(best, {percentile: figures for percentile, (_, figures) in found.items()})])
    tried = {f"{percentile:g}": asdict(figures) for percentile, (_, figures) in found.items()}
    write_json(out / FIGURES, {"tried": tried, "lost": lost, "seconds": round(time.perf_counter() - begun, 1)})


def _judge(settings: Settings, inputs: Mapping[str, Path], *, raw: bool) -> Judge:
    listed = read_calibration_list(inputs["calibset"] / CALIBRATION)
    samples = [listed[index] for index in agreement.choose(len(listed), settings.images)]
    images = [preprocess.load(settings.preprocess, each.source.content(), raw=raw) for each in samples]
    expected = agreement.float32_answers(float32_model(inputs), images)
    return Judge(images, expected, samples, read_scores(inputs["export"]))


def _choose(distances: Mapping[float, float]) -> float | None:
    """Return the percentile to take: of those that are as near to float32 as the nearest, the one of the widest range.

    None without any.

    Args:
        distances: by percentile.
    """
    least = min(distances.values(), default=0.0)
    return max((percentile for percentile, distance in distances.items() if distance <= _EQUAL * least), default=None)


def _describe(best: float, found: Mapping[float, CandidateFigures]) -> str:
    tried: Sequence[str] = [
        f"{each:g} KL {figures.kl:.5f}, {figures.sqnr_db:.1f} dB" for each, figures in found.items()
    ]
    return f"ranges of percentile {best:g}, the best of those tried on calibration images: {'; '.join(tried)}"
