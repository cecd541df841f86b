"""Judges int8 models on images whose float32 outputs are known: accuracy, and speed beside another model.

Each model is run in another process first: runtimes end their process on some models, which must not end the build.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from pipeline.data.imagenet import Sample
from pipeline.data.preprocess import Prepared
from pipeline.errors import BackendError, DataError
from pipeline.host import isolated
from pipeline.host.hardware import available_cores
from pipeline.onnx_models.saving import save_model
from pipeline.onnx_models.scores import Scores
from pipeline.proof.ratios import median_interval
from pipeline.quant.divergence import Divergence
from pipeline.runtimes.base import Backend, Runtime
from pipeline.runtimes.opening import choose, installed_runtimes, open_backend, place

_BATCH = 16
_MOST_S = 600.0  # for opening a model; a process that takes longer hangs
# Rounds of the speed comparison, whose median counts, after which it ends where it is clear whether a model is fast
# enough: testing after every round would find differences by chance.
_LOOKS = (8, 16, 32)
_BATCHES_A_ROUND = 2

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CandidateFigures:
    """A model on the images it is judged on."""

    agreement: float  # %, answers of float32
    kl: float  # nats per image
    sqnr_db: float
    drop: float | None  # top-1 lost, in points; None where the images have no labels
    speed: float | None  # images a CPU second over those of the plain int8 model, in the same run; None: not measured

    @property
    def distance(self) -> float:
        """The geometric mean of the divergence and the share of noise in the scores, by which models are compared.

        The few images of doubtful answers decide the divergence, so that on some hundred of them it is no surer than a
        tenth; all images have part in the noise.
        """
        return math.sqrt(max(0.0, self.kl) * 10 ** (-self.sqnr_db / 10))


class Judge:
    """Measures models in the runtime that packages are run in by default."""

    def __init__(
        self, images: Sequence[Prepared], expected: Float32, samples: Sequence[Sample], scores: Scores
    ) -> None:
        self.runtime: Runtime | None = None  # that models are judged in; known once one was opened
        self.images, self.expected = images, expected
        self._batches = [np.stack(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
        self._scores = scores
        labels = [sample.class_index for sample in samples]
        self._truth = None if None in labels else np.array(labels)

    @contextmanager
    def opened(self, model: onnx.ModelProto, *, is_known: bool = False) -> Iterator[Backend]:
        """Open a model, once another process has run it.

        Args:
            is_known: it differs in values alone from one that was opened: that tells that it runs.

        Raises:
            LostError, BackendError: it cannot be run in the runtime of the models before it.
            DataError: the first model cannot be run in any.
        """
        placement = place(available_cores(), available_cores())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            save_model(model, path)
            if self.runtime is None:
                self.runtime = _surviving_runtime(path)
            elif not is_known:
                isolated.call(_run_once, self.runtime, path, seconds=_MOST_S)
            with open_backend(self.runtime, path, batch=_BATCH, placement=placement) as backend:
                yield backend

    def figures(
        self,
        candidate: Backend,
        plain: Backend,
        is_wanted: Callable[[CandidateFigures], bool] = lambda _: True,
        least_speed: float = 1.0,
    ) -> CandidateFigures:
        """Return the figures of a model.

        Args:
            is_wanted: of the figures without the speed, whether to measure that, which takes most of the time.
            least_speed: it is measured until it is clear whether it is above, or 32 rounds are done.
        """
        figures = self.compare(self.answers(candidate))
        if candidate is plain:
            return replace(figures, speed=1.0)
        if not is_wanted(figures):
            return figures
        with ThreadPoolExecutor(available_cores()) as pool:
            return replace(figures, speed=self._speed(pool, candidate, plain, least_speed))

    def answers(self, backend: Backend) -> Float32:
        """Return a model's outputs for the images, [images, classes]."""
        with ThreadPoolExecutor(available_cores()) as pool:
            return np.concatenate(list(pool.map(backend.infer, self._batches)))

    def compare(self, answers: Float32) -> CandidateFigures:
        """Return the figures of a model's outputs, [images, classes], without its speed."""
        divergence = Divergence(self._scores)
        divergence.add(self.expected, answers)
        found, wanted = answers.argmax(axis=1), self.expected.argmax(axis=1)
        drop = None
        if self._truth is not None:
            drop = 100 * float((wanted == self._truth).mean() - (found == self._truth).mean())
        agreement = 100 * float((found == wanted).mean())
        return CandidateFigures(agreement, divergence.kl, divergence.sqnr_db, drop, speed=None)

    def _speed(self, pool: ThreadPoolExecutor, candidate: Backend, plain: Backend, least: float) -> float:
        """Return how many times as fast one model is as another, by CPU time."""
        ratios: list[float] = []
        for rounds in _LOOKS:
            while len(ratios) < rounds:
                ratios.append(self._seconds(pool, plain) / self._seconds(pool, candidate))
            interval = median_interval(ratios)
            if interval is not None and not interval[0] <= least <= interval[1]:
                break
        return statistics.median(ratios)

    def _seconds(self, pool: ThreadPoolExecutor, backend: Backend) -> float:
        """Return the CPU seconds of a round: every core has a request, and other work on the machine does not count."""
        begun = time.process_time()
        list(pool.map(backend.infer, self._batches[:1] * (_BATCHES_A_ROUND * available_cores())))
        return time.process_time() - begun


def _surviving_runtime(model: Path) -> Runtime:
    """Return the usual runtime, or the next that opens a model.

    Raises:
        DataError: none does.
    """
    usual = choose(Runtime.AUTO)
    reasons = []
    for runtime in [usual, *(each for each in installed_runtimes() if each is not usual)]:
        try:
            isolated.call(_run_once, runtime, model, seconds=_MOST_S)
        except (isolated.LostError, BackendError) as err:
            reasons.append(f"{runtime.value} {err}")
        else:
            return runtime
    raise DataError(f"the int8 model cannot be opened in any installed runtime: {'. '.join(reasons)}")


def _run_once(runtime: Runtime, model: Path) -> None:
    """Open a model and answer a batch of zeros."""
    with open_backend(runtime, model, batch=_BATCH, placement=place(available_cores(), available_cores())) as backend:
        spec = backend.input
        shape = [size if size is not None else _BATCH for size in spec.shape]
        backend.infer(np.zeros((_BATCH, *shape[1:]), spec.dtype))
