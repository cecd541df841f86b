"""Tune: keeps activations in float32 until the model reaches the goal of the build file's `accuracy` section.

The quantizers that cost most are left out one after the other, as long as the model stays fast enough. Which cost most
is told from gradients (`learn.ranking`). Chosen on calibration images that neither rounding nor equalization used,
never on the evaluation images.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pipeline.artefacts import write_json
from pipeline.config.build_file import AccuracyConfig, BuildConfig
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.data.calibration_list import FITTING_IMAGES, choose_evenly, read_calibration_list
from pipeline.data.imagenet import Sample
from pipeline.data.preprocess import Prepared
from pipeline.errors import BackendError, DataError
from pipeline.host import isolated
from pipeline.learn.ranking import measure_costs
from pipeline.proof.judge import CandidateFigures, Judge
from pipeline.quant import pixels
from pipeline.quant.assemble import assemble
from pipeline.runtimes.base import Backend, Runtime
from pipeline.runtimes.opening import choose
from pipeline.stages import int8_parts
from pipeline.stages.artefact_names import CALIBRATION, ISLANDS, OUTPUTS, float32_model, read_scores
from pipeline.terminal import console
from pipeline.terminal.progress import progress_bar

_JOURNAL = "journal.json"
_IMAGES = 400  # images that a model is judged on
_CANDIDATES = 16  # the most sensitive activations; further ones cost almost nothing
_LEAST_GAIN = 0.98  # of the previous divergence: a smaller gain is noise, and float parts slow the other runtime more
_DOUBT = 2.0  # a prediction may be too small by this factor


@dataclass(frozen=True)
class Step:
    """One trial: the kept activations so far and one more."""

    activation: str  # "" for the plain int8 model
    kept: bool
    figures: CandidateFigures
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Settings:
    parts: int8_parts.PartSettings
    goal: AccuracyConfig
    preprocess: PreprocessSpec


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs."""
    assert cfg.accuracy is not None, "the stage runs only where the build file has a goal"
    return Settings(parts=int8_parts.take_settings(cfg), goal=cfg.accuracy, preprocess=cfg.preprocess)


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write what stays in float and the result of each trial; resumes after the last trial of an interrupted run."""
    goal = settings.goal
    float32 = onnx.load(float32_model(inputs))
    parts = int8_parts.load(settings.parts, inputs, float32)
    listed = read_calibration_list(inputs["calibset"] / CALIBRATION)
    outputs = np.load(inputs["calibrate"] / OUTPUTS, allow_pickle=False)
    if goal.max_drop is not None and any(image.class_index is None for image in listed):
        raise DataError("accuracy.max_drop: the calibration images have no labels; set accuracy.min_agreement instead")
    journal = _Journal(out / _JOURNAL)

    raw = pixels.are_input_of(float32)

    def load(image: Sample) -> Prepared:
        return preprocess.load(settings.preprocess, image.source.content(), raw=raw)

    judged = _judged(len(listed))
    samples = [listed[index] for index in judged]
    judge = Judge([load(each) for each in samples], outputs[judged], samples, read_scores(inputs["export"]))

    def make(activations: Sequence[str]) -> onnx.ModelProto:
        return assemble(float32, parts.leaving(activations)).model

    def rank() -> dict[str, float]:
        costs = measure_costs(float32, make(()), parts.ranges, judge.images, judge.expected)
        return dict(sorted(costs.items(), key=lambda cost: -cost[1])[:_CANDIDATES])

    with judge.opened(make(())) as plain:
        _search(goal, journal, judge, plain, make, rank)
    best = journal.best()
    write_json(
        out / ISLANDS,
        {
            "goal": asdict(goal),
            "reached": _reached(goal, best.figures),
            "float_activations": journal.kept(),
            "steps": [asdict(step) for step in journal.steps],
            "lost": journal.lost,
            "images": len(judged),
            "runtime": (judge.runtime or choose(Runtime.AUTO)).value,
        },
    )
    (out / _JOURNAL).unlink()


def _judged(listed: int) -> list[int]:
    """Return the images that models are judged on: where possible, none that weights were fitted to."""
    fitted = choose_evenly(listed, FITTING_IMAGES)
    others = [index for index in range(listed) if index not in fitted] or list(range(listed))
    return [others[index] for index in choose_evenly(len(others), _IMAGES)]


def _search(
    goal: AccuracyConfig,
    journal: _Journal,
    judge: Judge,
    plain: Backend,
    make: Callable[[Sequence[str]], onnx.ModelProto],
    rank: Callable[[], dict[str, float]],
) -> None:
    """Try the candidates in turn until the goal is reached, the time is over, or no other would buy anything."""

    def is_over() -> bool:
        return _reached(goal, journal.best().figures) or journal.seconds > 60 * goal.budget_minutes

    if not journal.steps:
        begun = time.perf_counter()
        journal.add(Step("", True, judge.figures(plain, plain), time.perf_counter() - begun))
    if is_over():
        return
    if journal.costs is None:
        begun = time.perf_counter()
        journal.set_costs(rank(), time.perf_counter() - begun)
    costs = journal.costs or {}
    waiting = journal.waiting()
    console.note(_outlook(goal, journal))
    with progress_bar(len(costs), "tune", "model", done=len(costs) - len(waiting), span=(0.2, 1)) as progress:
        for name in waiting:
            best = journal.best().figures
            if is_over() or _DOUBT * costs[name] < (1 - _LEAST_GAIN) * best.kl:
                return
            begun = time.perf_counter()
            try:
                with judge.opened(make([*journal.kept(), name])) as candidate:
                    figures = judge.figures(candidate, plain)
            except (isolated.LostError, BackendError) as err:
                journal.lose(name, str(err), time.perf_counter() - begun)
                console.note(f"tune: with {name} in float32 the model cannot be opened ({err}); left in int8")
            else:
                kept = figures.speed >= goal.min_speed and figures.kl < _LEAST_GAIN * best.kl
                journal.add(Step(name, kept, figures, time.perf_counter() - begun))
                console.note(_outlook(goal, journal))
            progress.update()


def _outlook(goal: AccuracyConfig, journal: _Journal) -> str:
    """Return a line on the best model so far, and what the search may still buy."""
    best, costs = journal.best().figures, journal.costs or {}
    waiting = journal.waiting()
    left = max(0.0, best.kl - sum(costs[name] for name in waiting))
    drop = "" if best.drop is None or goal.max_drop is None else f", {best.drop:.2f} points of top-1 lost"
    untried = (
        f"{len(waiting)} more activations in float32 would bring it to about {left:.5f}" if waiting else "all tried"
    )
    return (
        f"tune: agreement {best.agreement:.2f}%{drop}, KL {best.kl:.5f}, speed {best.speed:.2f}; {untried}; "
        f"{max(0.0, goal.budget_minutes - journal.seconds / 60):.1f} minutes left"
    )


def _reached(goal: AccuracyConfig, figures: CandidateFigures) -> bool:
    agrees = goal.min_agreement is None or figures.agreement >= goal.min_agreement
    is_near = goal.max_kl is None or figures.kl <= goal.max_kl
    return (
        agrees and is_near and (goal.max_drop is None or (figures.drop is not None and figures.drop <= goal.max_drop))
    )


class _Journal:
    """The trials so far, on disk after each of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.costs: dict[str, float] | None = None  # of candidates, the costliest first: divergence that each causes
        self.steps: list[Step] = []
        self.lost: dict[str, str] = {}  # candidates whose model no runtime opened, and why
        self.seconds = 0.0
        if path.exists():
            held = json.loads(path.read_text(encoding="utf-8"))
            self.costs = None if held["costs"] is None else dict(held["costs"])
            self.lost, self.seconds = held["lost"], held["seconds"]
            self.steps = [Step(**{**step, "figures": CandidateFigures(**step["figures"])}) for step in held["steps"]]

    def set_costs(self, costs: Mapping[str, float], seconds: float) -> None:
        self.costs = dict(costs)
        self.seconds += seconds
        self._save()

    def add(self, step: Step) -> None:
        self.steps.append(step)
        self.seconds += step.seconds
        self._save()

    def lose(self, name: str, why: str, seconds: float) -> None:
        self.lost[name] = why
        self.seconds += seconds
        self._save()

    def waiting(self) -> list[str]:
        """Return the candidates that were not tried, the costliest first."""
        tried = {step.activation for step in self.steps} | self.lost.keys()
        return [name for name in self.costs or {} if name not in tried]

    def kept(self) -> list[str]:
        return [step.activation for step in self.steps if step.kept and step.activation]

    def best(self) -> Step:
        return [step for step in self.steps if step.kept][-1]

    def _save(self) -> None:
        costs = None if self.costs is None else list(self.costs.items())  # in their order
        held: dict[str, Any] = {"costs": costs, "lost": self.lost, "seconds": self.seconds}
        write_json(self._path, {**held, "steps": [asdict(step) for step in self.steps]})
