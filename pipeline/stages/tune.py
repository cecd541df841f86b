"""Tune: keeps activations in float32 until the model reaches the goal of the build file's `accuracy` section.

The quantizers that cost most are left out one after the other, as long as the model stays fast enough. Chosen on
calibration images that neither rounding nor equalization used, never on the evaluation images.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
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
from pipeline.host.hardware import available_cores
from pipeline.onnx_models.scores import Scores
from pipeline.quant import pixels
from pipeline.quant.assemble import assemble
from pipeline.quant.divergence import Divergence
from pipeline.quant.sensitivity import Kind, Sensitivity
from pipeline.runtimes.base import Backend, Runtime
from pipeline.runtimes.opening import choose, installed_runtimes, open_backend, place
from pipeline.stages import int8_parts
from pipeline.stages.artefact_names import CALIBRATION, ISLANDS, OUTPUTS, float32_model, read_scores
from pipeline.terminal.progress import progress_bar

_JOURNAL = "journal.json"
_SENSITIVITY_IMAGES = 16
_IMAGES = 400  # images that a model is judged on
_CANDIDATES = 16  # the most sensitive activations; further ones cost almost nothing
_LEAST_GAIN = 0.98  # of the previous divergence: a smaller gain is noise, and float parts slow the other runtime more
_BATCH = 16
_MOST_S = 600.0  # for opening a model; a process that takes longer hangs
_ROUNDS = 5  # of the speed comparison, whose median counts
_BATCHES_A_ROUND = 4

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CandidateFigures:
    """A model on the images it is judged on."""

    agreement: float  # %, answers of float32
    kl: float  # nats an image
    sqnr_db: float
    drop: float | None  # top-1 lost, in points; None where the images have no labels
    speed: float  # images/s over those of the plain int8 model, in the same run


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
    judge = _Judge([load(each) for each in samples], outputs[judged], samples, read_scores(inputs["export"]))

    def make(activations: Sequence[str]) -> onnx.ModelProto:
        return assemble(float32, parts.leaving(activations)).model

    def rank() -> list[str]:
        sensitivity = Sensitivity(float32, make(()), parts.ranges)
        shown = [load(listed[index]) for index in choose_evenly(len(listed), _SENSITIVITY_IMAGES)]
        with progress_bar(len(sensitivity), "sensitivity", "quantizer", span=(0, 0.2)) as progress:
            costs = sensitivity.measure(shown, progress.update)
        return [cost.name for cost in costs if cost.kind is Kind.ACTIVATION][:_CANDIDATES]

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
    judge: _Judge,
    plain: Backend,
    make: Callable[[Sequence[str]], onnx.ModelProto],
    rank: Callable[[], list[str]],
) -> None:
    """Try the candidates in turn until the goal is reached or the time is over."""

    def is_over() -> bool:
        return _reached(goal, journal.best().figures) or journal.seconds > 60 * goal.budget_minutes

    if not journal.steps:
        begun = time.perf_counter()
        journal.add(Step("", True, judge.figures(plain, plain), time.perf_counter() - begun))
    if is_over():
        return
    if journal.order is None:
        begun = time.perf_counter()
        journal.set_order(rank(), time.perf_counter() - begun)
    assert journal.order is not None
    tried = len(journal.steps) - 1
    with progress_bar(len(journal.order), "tune", "model", done=tried, span=(0.2, 1)) as progress:
        for name in journal.order[tried:]:
            if is_over():
                return
            begun = time.perf_counter()
            with judge.opened(make([*journal.kept(), name])) as candidate:
                figures = judge.figures(candidate, plain)
            best = journal.best().figures
            kept = figures.speed >= goal.min_speed and figures.kl < _LEAST_GAIN * best.kl
            journal.add(Step(name, kept, figures, time.perf_counter() - begun))
            progress.update()


def _reached(goal: AccuracyConfig, figures: CandidateFigures) -> bool:
    agrees = goal.min_agreement is None or figures.agreement >= goal.min_agreement
    return agrees and (goal.max_drop is None or (figures.drop is not None and figures.drop <= goal.max_drop))


class _Journal:
    """The trials so far, on disk after each of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.order: list[str] | None = None  # candidates, the most sensitive first
        self.steps: list[Step] = []
        self.seconds = 0.0
        if path.exists():
            held = json.loads(path.read_text(encoding="utf-8"))
            self.order, self.seconds = held["order"], held["seconds"]
            self.steps = [Step(**{**step, "figures": CandidateFigures(**step["figures"])}) for step in held["steps"]]

    def set_order(self, names: Sequence[str], seconds: float) -> None:
        self.order = list(names)
        self.seconds += seconds
        self._save()

    def add(self, step: Step) -> None:
        self.steps.append(step)
        self.seconds += step.seconds
        self._save()

    def kept(self) -> list[str]:
        return [step.activation for step in self.steps if step.kept and step.activation]

    def best(self) -> Step:
        return [step for step in self.steps if step.kept][-1]

    def _save(self) -> None:
        held: dict[str, Any] = {"order": self.order, "seconds": self.seconds}
        write_json(self._path, {**held, "steps": [asdict(step) for step in self.steps]})


class _Judge:
    """Measures models in the runtime that packages are run in by default."""

    def __init__(
        self, images: Sequence[Prepared], expected: Float32, samples: Sequence[Sample], scores: Scores
    ) -> None:
        self.runtime: Runtime | None = None  # that models are judged in; known once one was opened
        self._batches = [np.stack(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
        self._expected = expected
        self._scores = scores
        labels = [sample.class_index for sample in samples]
        self._truth = None if None in labels else np.array(labels)

    @contextmanager
    def opened(self, model: onnx.ModelProto) -> Iterator[Backend]:
        placement = place(available_cores(), available_cores())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(model, path)
            if self.runtime is None:
                self.runtime = _surviving_runtime(path)
            with open_backend(self.runtime, path, batch=_BATCH, placement=placement) as backend:
                yield backend

    def figures(self, candidate: Backend, plain: Backend) -> CandidateFigures:
        with ThreadPoolExecutor(available_cores()) as pool:
            answers = np.concatenate(list(pool.map(candidate.infer, self._batches)))
            ratios = [self._seconds(pool, plain) / self._seconds(pool, candidate) for _ in range(_ROUNDS)]
        divergence = Divergence(self._scores)
        divergence.add(self._expected, answers)
        found, wanted = answers.argmax(axis=1), self._expected.argmax(axis=1)
        drop = None
        if self._truth is not None:
            drop = 100 * float((wanted == self._truth).mean() - (found == self._truth).mean())
        return CandidateFigures(
            agreement=100 * float((found == wanted).mean()),
            kl=divergence.kl,
            sqnr_db=divergence.sqnr_db,
            drop=drop,
            speed=1.0 if candidate is plain else statistics.median(ratios),
        )

    def _seconds(self, pool: ThreadPoolExecutor, backend: Backend) -> float:
        begun = time.perf_counter()
        list(pool.map(backend.infer, self._batches[:1] * (_BATCHES_A_ROUND * available_cores())))
        return time.perf_counter() - begun


def _surviving_runtime(model: Path) -> Runtime:
    """Return the usual runtime, or the next that opens a model: one that ends its process must not end the build.

    Raises:
        DataError: none does.
    """
    usual = choose(Runtime.AUTO)
    reasons = []
    for runtime in [usual, *(each for each in installed_runtimes() if each is not usual)]:
        try:
            isolated.call(_open, runtime, model, seconds=_MOST_S)
        except (isolated.LostError, BackendError) as err:
            reasons.append(f"{runtime.value} {err}")
        else:
            return runtime
    raise DataError(f"the int8 model cannot be opened in any installed runtime: {'. '.join(reasons)}")


def _open(runtime: Runtime, model: Path) -> None:
    with open_backend(runtime, model, batch=_BATCH, placement=place(available_cores(), available_cores())):
        pass
