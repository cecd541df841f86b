"""Tune: changes activations until the model reaches the goal of the build file's `accuracy` section.

Those whose quantizers cost most are split into finer int8 parts (`quant.splitting`), or kept in float32, or the sums of
a residual stream are (`quant.float_sums`), one after the other, as long as the model stays fast enough. Which cost most
is told from gradients (`learn.ranking`). Chosen on calibration images that neither rounding nor equalization used,
never on the evaluation images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from pipeline.artefacts import write_json
from pipeline.config.build_config import BuildConfig
from pipeline.config.sections import AccuracyConfig
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.data.calibration_list import choose_evenly, read_calibration_list
from pipeline.data.imagenet import Sample
from pipeline.data.preprocess import Prepared
from pipeline.errors import BackendError, DataError
from pipeline.host import isolated
from pipeline.host.hardware import available_cores
from pipeline.learn.ranking import measure_costs
from pipeline.proof import agreement
from pipeline.proof.changes import BFLOAT16, Candidates, Change, How, Step
from pipeline.proof.exchange import find_exchange, may_fit
from pipeline.proof.judge import CandidateFigures, Judge
from pipeline.proof.search_journal import Journal
from pipeline.quant import pixels, slowdown
from pipeline.quant.addends import added_within
from pipeline.quant.assemble import Parts, assemble
from pipeline.quant.equalization import channel_extremes
from pipeline.quant.float_sums import convolutions_added, find_joins, find_streams, gain_of
from pipeline.quant.splitting import Split, can_split, efficient, split, ways_to_split
from pipeline.runtimes.activations import ActivationReader
from pipeline.runtimes.base import Backend, Runtime
from pipeline.runtimes.opening import choose
from pipeline.runtimes.readers import computes_bfloat16
from pipeline.stages import int8_parts
from pipeline.stages.artefact_names import CALIBRATION, ISLANDS, float32_model, read_scores
from pipeline.terminal import console
from pipeline.terminal.progress import progress_bar

_JOURNAL = "journal.json"
_CANDIDATES = 16  # the most sensitive activations; further ones cost almost nothing
_RANGED = 128  # images that tell which channels of an activation are wide
_LEAST_GAIN = 0.98  # of the previous distance: a smaller gain is noise, and float parts slow the other runtime more
# The same where every convolution stays in int8: such changes are cheap, and several together count.
_LEAST_GAIN_INT8 = 0.995
_LEAST_GAINS = {How.IN_FLOAT: _LEAST_GAIN, How.HALVED: 1.1}  # bfloat16 may lose some, for the time that it gains
_EXCHANGES = 3  # that bought nothing, after which the search ends
_DOUBT = 2.0  # a prediction may be too small by this factor


@dataclass(frozen=True, kw_only=True)
class Settings:
    parts: int8_parts.PartSettings
    goal: AccuracyConfig
    preprocess: PreprocessSpec
    bfloat16: bool  # whether OpenVINO may compute in it what stays in float


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs."""
    assert cfg.accuracy is not None, "the stage runs only where the build file has a goal"
    return Settings(
        parts=int8_parts.take_settings(cfg),
        goal=cfg.accuracy,
        preprocess=cfg.preprocess,
        bfloat16=computes_bfloat16(),
    )


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write what stays in float and the result of each trial; resumes after the last trial of an interrupted run."""
    goal = settings.goal
    float32 = onnx.load(float32_model(inputs))
    parts = int8_parts.load(settings.parts, inputs, float32)
    listed = read_calibration_list(inputs["calibset"] / CALIBRATION)
    if goal.max_drop is not None and any(image.class_index is None for image in listed):
        raise DataError("accuracy.max_drop: the calibration images have no labels; set accuracy.min_agreement instead")
    journal = Journal(out / _JOURNAL)

    raw = pixels.are_input_of(float32)

    def load(image: Sample) -> Prepared:
        return preprocess.load(settings.preprocess, image.source.content(), raw=raw)

    judged = agreement.choose(len(listed), agreement.SEARCHED)
    samples = [listed[index] for index in judged]
    images = [load(each) for each in samples]
    expected = agreement.float32_answers(float32_model(inputs), images)
    judge = Judge(images, expected, samples, read_scores(inputs["export"]))

    def make(changes: Sequence[Change]) -> onnx.ModelProto:
        in_float = {each.activation for each in changes if each.how is How.IN_FLOAT}
        parted = journal.splits_of(change for change in changes if change.activation not in in_float)
        changed, theirs = split(float32, parts, dict(sorted(parted.items())))
        theirs = theirs.leaving(in_float).adding_in_float(journal.additions_of(sorted(changes, key=str)))
        return assemble(changed, replace(theirs, bfloat16=BFLOAT16 in changes)).model

    def find() -> Candidates:
        return _find_candidates(float32, parts, make(()), judge)

    with judge.opened(make(())) as plain:
        _search(goal, journal, judge, plain, make, find, bfloat16=settings.bfloat16)
    if not _reached(goal, journal.best().figures):
        journal.take_back_bfloat16()
    best = journal.best()
    write_json(
        out / ISLANDS,
        {
            "goal": asdict(goal),
            "reached": _reached(goal, best.figures),
            "float_activations": journal.in_float(),
            "split_activations": {name: asdict(each) for name, each in journal.split().items()},
            "float_sums": journal.sums_in_float(),
            "bfloat16": BFLOAT16 in journal.kept(),
            "steps": [step.as_document() for step in journal.steps],
            "lost": journal.lost,
            "images": len(judged),
            "runtime": (judge.runtime or choose(Runtime.AUTO)).value,
        },
    )
    (out / _JOURNAL).unlink()


def _find_candidates(float32: onnx.ModelProto, parts: Parts, int8: onnx.ModelProto, judge: Judge) -> Candidates:
    """Return what may be tried, and what each change saves and costs; `int8` is the model without any."""
    costs = measure_costs(float32, int8, parts.ranges, judge.images, judge.expected)
    streams = find_streams(float32)
    in_openvino = (judge.runtime or choose(Runtime.AUTO)) is Runtime.OPENVINO
    exact = added_within(float32, parts.ranges) if in_openvino else frozenset()
    rounding = {name: cost for name, cost in costs.rounding.items() if name not in exact}
    whole = {name: cost + costs.weights[name] for name, cost in costs.rounding.items()}
    joins = find_joins(float32)
    sums = {str(Change(name, How.SUMS)): additions for name, additions in streams.items()}
    sums |= {str(Change(name, How.JOIN)): additions for name, additions in joins.items()}
    gains = {change: gain_of(float32, additions, costs.rounding, exact) for change, additions in sums.items()}
    if in_openvino:  # of two convolutions that are added up, it would round the other
        added = convolutions_added(float32, [each for additions in streams.values() for each in additions])
        whole = {name: cost for name, cost in whole.items() if name not in exact | added}
    whole = dict(sorted(whole.items(), key=lambda cost: -cost[1])[:_CANDIDATES])
    ways = _find_splits(float32, parts, list(whole), judge.images)
    slowdowns = {change: slowdown.of_sums(float32, additions) for change, additions in sums.items()}
    slowdowns |= {str(Change(name)): slowdown.of_float(float32, name) for name in whole}
    splits = {name: efficient(found) for name, found in ways.items()}
    fewer = {name: [each for each in found if each not in splits[name]] for name, found in ways.items()}
    for name, each in [(name, each) for name, found in ways.items() for each in found]:
        change = Change(name, How.SPLIT, len(each.channels))
        slowdowns[str(change)] = slowdown.of_split(float32, name, each)
    divergence = sum(rounding.values()) + sum(costs.weights.values())
    return Candidates(whole, costs.rounding, splits, streams, joins, gains, slowdowns, fewer, divergence)


def _find_splits(
    float32: onnx.ModelProto, parts: Parts, names: Sequence[str], images: Sequence[Prepared]
) -> dict[str, list[Split]]:
    """Return by activation that can be split the ways to do so."""
    found = [name for name in names if parts.ranges[name].low == 0 and can_split(float32, name)]
    if not found:
        return {}
    reader = ActivationReader(float32, found, threads=available_cores())
    largest: dict[str, np.ndarray] = {}
    for index in choose_evenly(len(images), _RANGED):
        values = reader.read(images[index])
        for name in found:
            largest[name] = np.maximum(largest.get(name, 0.0), channel_extremes(values[name], 1))
    return {name: ways_to_split(float32, name, largest[name], parts.ranges[name]) for name in found}


def _search(
    goal: AccuracyConfig,
    journal: Journal,
    judge: Judge,
    plain: Backend,
    make: Callable[[Sequence[Change]], onnx.ModelProto],
    find: Callable[[], Candidates],
    *,
    bfloat16: bool,
) -> None:
    """Try the candidates in turn until the goal is reached, the time is over, or no other would buy anything.

    Args:
        bfloat16: whether models may compute in it what they leave in float.
    """

    def is_over() -> bool:
        return _reached(goal, journal.best().figures) or journal.seconds > 60 * goal.budget_minutes

    if not journal.steps:
        begun = time.perf_counter()
        journal.add(Step("", True, judge.figures(plain, plain), time.perf_counter() - begun))
    if is_over():
        return
    if journal.candidates is None:
        begun = time.perf_counter()
        journal.set_candidates(find(), time.perf_counter() - begun)
    console.note(_outlook(goal, journal))
    done = journal.trials() - len(journal.waiting())
    failed = 0  # exchanges, one after the other
    with progress_bar(journal.trials(), "tune", "model", done=done, span=(0.2, 1)) as progress:
        while True:
            best, found = journal.best().figures, None if is_over() else _next(journal, goal, failed, bfloat16=bfloat16)
            if found is None:
                return
            change, without, is_exchange = found
            least = _LEAST_GAINS.get(change.how, _LEAST_GAIN_INT8) * best.distance

            def is_better(figures: CandidateFigures, least: float = least) -> bool:
                return figures.distance < least or _reached(goal, figures)

            begun = time.perf_counter()
            try:
                model = make([*(each for each in journal.kept() if each not in without), change])
                with judge.opened(model) as candidate:
                    figures = judge.figures(candidate, plain, is_wanted=is_better, least_speed=goal.min_speed)
            except (isolated.LostError, BackendError) as err:
                journal.lose(change, str(err), time.perf_counter() - begun)
                console.note(f"tune: with {change} the model cannot be opened ({err}); left as it is")
            else:
                kept = figures.speed is not None and figures.speed >= goal.min_speed
                spent = time.perf_counter() - begun
                journal.add(Step(change.activation, kept, figures, spent, change.how, change.channels, without))
                failed = 0 if kept else failed + is_exchange
                console.note(_outlook(goal, journal))
            progress.update()


def _next(
    journal: Journal, goal: AccuracyConfig, failed: int, *, bfloat16: bool
) -> tuple[Change, tuple[Change, ...], bool] | None:
    """Return the change to try, which kept ones it replaces, and whether it is an exchange; None: nothing is left.

    Args:
        failed: exchanges that bought nothing, one after the other.
        bfloat16: as of `_search`. It is tried when nothing else is left; what did not fit may fit then.
    """
    least = (1 - _LEAST_GAIN) * journal.best().figures.kl
    for change, gain in journal.waiting():
        if _DOUBT * gain >= least and may_fit(journal, change, goal.min_speed):
            return change, (), False
    exchange = find_exchange(journal, goal.min_speed) if failed < _EXCHANGES else None
    if exchange is not None and exchange.distance <= _LEAST_GAIN_INT8:
        return exchange.change, exchange.without, True
    return (BFLOAT16, (), False) if bfloat16 and journal.can_be_halved() else None


def _outlook(goal: AccuracyConfig, journal: Journal) -> str:
    """Return a line on the best model so far, and what the search may still buy."""
    best, waiting = journal.best().figures, journal.waiting()
    # What sums in float32 save is a part of what the quantizers of their activations cost.
    left = max(0.0, best.kl - sum(gain for change, gain in waiting if change.how not in (How.SUMS, How.JOIN)))
    drop = "" if best.drop is None or goal.max_drop is None else f", {best.drop:.2f} points of top-1 lost"
    untried = f"{len(waiting)} more changes would bring it to about {left:.5f}" if waiting else "all tried"
    return (
        f"tune: agreement {best.agreement:.2f}%{drop}, KL {best.kl:.5f}, speed {best.speed or 1:.2f}; {untried}; "
        f"{max(0.0, goal.budget_minutes - journal.seconds / 60):.1f} minutes left"
    )


def _reached(goal: AccuracyConfig, figures: CandidateFigures) -> bool:
    agrees = goal.min_agreement is None or figures.agreement >= goal.min_agreement
    is_near = goal.max_kl is None or figures.kl <= goal.max_kl
    return (
        agrees and is_near and (goal.max_drop is None or (figures.drop is not None and figures.drop <= goal.max_drop))
    )
