"""Judges int8 models on images whose float32 outputs are known: accuracy, and speed beside another model.

Each model is run in another process first: runtimes end their process on some models, which must not end the build.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
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
from pipeline.quant.divergence import Divergence
from pipeline.runtimes.base import Backend, Runtime
from pipeline.runtimes.opening import choose, installed_runtimes, open_backend, place

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
    speed: float | None  # images a CPU second over those of the plain int8 model, in the same run; None: not measured

    @property
    def distance(self) -> float:
        """The geometric mean of the divergence and the share of noise in the scores, by which models are compared.

        The few images of doubtful answers decide the divergence, so that on some hundred of them it is no surer than a
        tenth; all images have part in the noise.
        """
        return _distance(self.kl, self.sqnr_db)


def _distance(kl: float, sqnr_db: float) -> float:
    return math.sqrt(max(0.0, kl) * 10 ** (-sqnr_db / 10))


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
    def opened(self, model: onnx.ModelProto) -> Iterator[Backend]:
        """Open a model, once another process has run it.

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
            else:
                isolated.call(_run_once, self.runtime, path, seconds=_MOST_S)
            with open_backend(self.runtime, path, batch=_BATCH, placement=placement) as backend:
                yield backend

    def figures(self, candidate: Backend, plain: Backend, below: float = math.inf) -> CandidateFigures:
        """Return the figures of a model; the speed, which takes most of the time, where its distance is `below`."""
        with ThreadPoolExecutor(available_cores()) as pool:
            answers = np.concatenate(list(pool.map(candidate.infer, self._batches)))
            divergence = Divergence(self._scores)
            divergence.add(self.expected, answers)
            is_near = _distance(divergence.kl, divergence.sqnr_db) < below
            rounds = _ROUNDS if is_near and candidate is not plain else 0
            ratios = [self._seconds(pool, plain) / self._seconds(pool, candidate) for _ in range(rounds)]
        speed = statistics.median(ratios) if ratios else None
        found, wanted = answers.argmax(axis=1), self.expected.argmax(axis=1)
        drop = None
        if self._truth is not None:
            drop = 100 * float((wanted == self._truth).mean() - (found == self._truth).mean())
        return CandidateFigures(
            agreement=100 * float((found == wanted).mean()),
            kl=divergence.kl,
            sqnr_db=divergence.sqnr_db,
            drop=drop,
            speed=1.0 if candidate is plain else speed,
        )

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
