"""Ranges: of several percentiles, the one whose int8 model answers most like float32 (calibrate_mode `measured`).

A narrower range has finer steps, and cuts off values: how much of both a network bears histograms tell in part. So the
models of percentiles beside the one that they speak for are made and run, on calibration images that no weight was
fitted to, never on the evaluation images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
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
from pipeline.quant.divergence import ByImage, by_image
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
    read_percentile,
    read_scores,
    write_notes,
)
from pipeline.terminal.progress import progress_bar

IMAGES = 200  # that models are compared on
# Of the distance: what a gain has to be at least, beside its standard error. Calibration images set the ranges, and
# others reach a little further.
_LEAST_GAIN = 0.01
_MOST_LOST = 2  # models one after the other that are no better than the best: none is tried after them
_INSTEAD = "backend.quantize.calibrate_mode: percentile"


@dataclass(frozen=True, kw_only=True)
class Settings:
    parts: int8_parts.PartSettings
    preprocess: PreprocessSpec
    percentiles: tuple[float, ...]  # the widest range first
    images: int  # at most so many are used


@dataclass(frozen=True)
class Trial:
    """What the int8 model of a percentile came to."""

    ranges: Mapping[str, Range]
    figures: CandidateFigures
    accuracy: ByImage  # of the answers, beside float32's


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
    found: dict[float, Trial] = {}
    lost: dict[float, str] = {}
    best, beaten = None, 0
    order = _order(settings.percentiles, read_percentile(inputs))
    with progress_bar(len(order), "ranges", "model") as progress:
        for percentile, trial in _trials(settings, inputs, order):
            progress.update()
            if isinstance(trial, str):
                lost[percentile] = trial
                continue
            found[percentile] = trial
            if best is None or _is_better(trial, found[best]):
                best, beaten = percentile, 0
            else:
                beaten += 1
            if beaten == _MOST_LOST:
                break
    if best is None:
        raise BackendError(
            f"none of the int8 models of {len(order)} percentiles runs: {next(iter(lost.values()))}; set {_INSTEAD}"
        )
    write_json(out / THRESHOLDS, {name: asdict(each) for name, each in found[best].ranges.items()})
    write_notes(out, [_describe(best, {percentile: trial.figures for percentile, trial in found.items()})])
    tried = {f"{percentile:g}": asdict(trial.figures) for percentile, trial in found.items()}
    write_json(out / FIGURES, {"tried": tried, "lost": lost, "seconds": round(time.perf_counter() - begun, 1)})


def _order(percentiles: Sequence[float], first: float) -> list[float]:
    """Return the percentiles in the order of their trials: that of the histograms, those beside it, the others."""
    places = {percentile: place for place, percentile in enumerate(percentiles)}
    return sorted(percentiles, key=lambda percentile: (abs(places[percentile] - places[first]), places[percentile]))


def _trials(
    settings: Settings, inputs: Mapping[str, Path], order: Sequence[float]
) -> Iterator[tuple[float, Trial | str]]:
    """Yield for each percentile what its model came to, or why there is none."""
    float32 = onnx.load(float32_model(inputs))
    parts = int8_parts.load(settings.parts, inputs, float32)
    seen, _ = ObserverSet.load(inputs["calibrate"] / OBSERVERS)
    judge, scores = _judge(settings, inputs, raw=pixels.are_input_of(float32)), read_scores(inputs["export"])
    for percentile in order:
        ranges = ranges_by(seen, by_percentile(percentile))
        model = assemble(float32, replace(parts, ranges=ranges)).model
        try:
            # Models differ in scales alone: where the first runs, the others do.
            with judge.opened(model, is_known=judge.runtime is not None) as backend:
                answers = judge.answers(backend)
        except (isolated.LostError, BackendError) as err:
            yield percentile, str(err)
            continue
        if np.isfinite(answers).all():
            yield percentile, Trial(ranges, judge.compare(answers), by_image(judge.expected, answers, scores))
        else:
            yield percentile, "its answers are no numbers"


def _judge(settings: Settings, inputs: Mapping[str, Path], *, raw: bool) -> Judge:
    listed = read_calibration_list(inputs["calibset"] / CALIBRATION)
    samples = [listed[index] for index in agreement.choose(len(listed), settings.images)]
    images = [preprocess.load(settings.preprocess, each.source.content(), raw=raw) for each in samples]
    expected = agreement.float32_answers(float32_model(inputs), images)
    return Judge(images, expected, samples, read_scores(inputs["export"]))


def _is_better(trial: Trial, best: Trial) -> bool:
    """Whether a model is nearer to float32 by more than the images chosen leave open.

    The gain is that of the logarithm of the distance, and its standard error that of a ratio of sums over the same
    images (the delta method).
    """
    gain, variance = 0.0, np.zeros(len(trial.accuracy.kl))
    for mine, its in ((trial.accuracy.kl, best.accuracy.kl), (trial.accuracy.noise, best.accuracy.noise)):
        if its.sum() <= 0 or mine.sum() <= 0:
            return bool(its.sum() > 0)
        gain += math.log(its.sum() / mine.sum()) / 2
        variance += (its / its.sum() - mine / mine.sum()) / 2
    return gain > max(_LEAST_GAIN, float(np.sqrt((variance**2).sum())))


def _describe(best: float, found: Mapping[float, CandidateFigures]) -> str:
    tried = [f"{each:g} KL {figures.kl:.5f}, {figures.sqnr_db:.1f} dB" for each, figures in found.items()]
    return f"ranges of percentile {best:g}, the best of those tried on calibration images: {'; '.join(tried)}"
