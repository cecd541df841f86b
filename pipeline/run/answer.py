"""The one inference lane: decode, prepare, stack, infer, check, probabilities, best classes.

`bench`, `eval`, `predict` and `serve` all answer through these functions, so that they give the same answer to an image
and the same error for the same fault.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.data.preprocess import Pixels, Prepared
from pipeline.data.quick_jpeg import QuickJpegs
from pipeline.errors import BackendError, DataError
from pipeline.onnx_models.scores import Scores
from pipeline.packages.package import Package
from pipeline.quant.divergence import probabilities
from pipeline.run.inputs import ImageLike, decode
from pipeline.run.prediction import Prediction
from pipeline.runtimes.base import Backend, Output, Runtime
from pipeline.runtimes.opening import open_backend, place

NOT_FINITE = "the model's output holds NaN or Inf"
_FEW = 8  # a maximum each is faster than sorting: five of 1000 scores take a fifteenth of the time

Indices = npt.NDArray[np.intp]
Skip = Callable[[str, DataError], None]  # is told the name of an image that is left out, and why
Source = TypeVar("Source")  # where an image comes from


def prepare(
    spec: PreprocessSpec, name: str, image: Source, decode: Callable[[Source], Pixels], *, takes_pixels: bool
) -> tuple[Prepared, float]:
    """Decode one image and prepare it for a model.

    Args:
        name: of the image, for errors.
        takes_pixels: whether the model reads uint8 pixels (`TensorSpec.takes_pixels`), or else normalised float32.

    Returns:
        [3, H, W] as the model takes it, and how many seconds of the work came after decoding.

    Raises:
        DataError: the image cannot be decoded or prepared; it begins with `name`.
    """
    with _named(name):
        pixels = decode(image)
        decoded = time.perf_counter()
        return preprocess.prepare(spec, pixels, raw=takes_pixels), time.perf_counter() - decoded
    raise AssertionError  # mypy: `_named` may swallow what was raised


def load(
    spec: PreprocessSpec, name: str, content: bytes, *, takes_pixels: bool, quick: QuickJpegs | None = None
) -> Prepared:
    """Decode and prepare one image file as `prepare` does, in less time; raises as that."""
    with _named(name):
        return preprocess.load(spec, content, raw=takes_pixels, quick=quick)
    raise AssertionError  # as above


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Let a DataError begin with the name of its image."""
    try:
        yield
    except DataError as err:
        if str(err).startswith(f"{name}: "):
            raise
        raise DataError(f"{name}: {err}") from err


def infer(backend: Backend, images: Sequence[Prepared]) -> Output:
    """Return a model's outputs for prepared images, float32 [images, classes], not checked; computed in one request."""
    return backend.infer(np.stack(images))


def find_finite(outputs: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Tell for each row whether it holds neither NaN nor Inf."""
    finite: npt.NDArray[np.bool_] = np.isfinite(outputs).all(axis=1)
    return finite


def check_finite(outputs: Output, names: Sequence[str]) -> None:
    """Raise BackendError, which names the first image whose output is not finite."""
    finite = find_finite(outputs)
    if not finite.all():
        raise BackendError(f"{names[int(np.argmin(finite))]}: {NOT_FINITE}")


@dataclass(frozen=True)
class Answers:
    """A model's answers to the images of one request, and the seconds that each step took."""

    names: list[str]  # of the images that were not skipped
    outputs: Output  # float32 [images, classes], finite
    read: float
    preprocess: float
    infer: float  # with waiting for a stream


def answer(
    backend: Backend,
    spec: PreprocessSpec,
    images: Sequence[tuple[str, Source]],
    decode: Callable[[Source], Pixels],
    skip: Skip | None = None,
) -> Answers | None:
    """Answer images with their names, at most a batch, in one request.

    Returns:
        None where all were skipped.

    Raises:
        DataError: an image cannot be decoded or prepared, and `skip` is None.
        BackendError: the runtime fails, or an output is not finite.
    """
    begun = time.perf_counter()
    preparing = 0.0
    names, prepared = [], []
    for name, image in images:
        try:
            array, seconds = prepare(spec, name, image, decode, takes_pixels=backend.input.takes_pixels)
        except DataError as err:
            if skip is None:
                raise
            skip(name, err)
        else:
            names.append(name)
            prepared.append(array)
            preparing += seconds
    if not prepared:
        return None
    ready = time.perf_counter()
    outputs = infer(backend, prepared)
    inferred = time.perf_counter()
    check_finite(outputs, names)
    return Answers(names, outputs, ready - begun - preparing, preparing, inferred - ready)


def rank_classes(scores: npt.NDArray[np.floating], count: int) -> Indices:
    """Return the `count` best classes of each row, best first; of equal scores the lower class counts as better.

    Args:
        scores: finite, [images, classes].

    Returns:
        [images, min(count, classes)].
    """
    count = min(count, scores.shape[1])
    if count > _FEW:
        return np.argsort(-scores, axis=1, kind="stable")[:, :count]
    left = scores.copy()
    ranks = np.empty((len(scores), count), np.intp)
    rows = np.arange(len(scores))
    for rank in range(count):
        ranks[:, rank] = left.argmax(axis=1)
        left[rows, ranks[:, rank]] = -np.inf
    return ranks


def make_predictions(
    names: Sequence[str], outputs: Output, scores: Scores | None, labels: Sequence[str], topk: int
) -> list[Prediction]:
    """Return the best classes of images by their outputs, float32 [images, classes].

    Args:
        scores: what the outputs are (`Package.scores`).
        labels: of the classes, in the order of the outputs.
        topk: classes per image, as far as there are so many.
    """
    shares = probabilities(outputs, scores)
    return [
        Prediction(
            name,
            tuple(int(index) for index in ranks),
            tuple(float(row[index]) for index in ranks),
            tuple(labels[index] for index in ranks),
        )
        for name, row, ranks in zip(names, shares, rank_classes(shares, topk), strict=True)
    ]


class Lane:
    """A package loaded in a runtime, for batches of images; `Classifier` has one, each worker of a cluster too."""

    def __init__(self, package: Package, runtime: Runtime, cores: int) -> None:
        self.package, self.runtime, self._cores = package, runtime, cores
        self._spec, self._scores = package.preprocess(), package.scores
        self._labels = [known.name for known in package.classes()]
        self._opened = ExitStack()
        self._backends: dict[tuple[int, int], Backend] = {}  # by images per request and requests at once
        self.seconds = {"read": 0.0, "preprocess": 0.0, "infer": 0.0}  # of all threads
        self._lock = threading.Lock()

    def open(self, batch: int, streams: int) -> Backend:
        """Return the model loaded for so many images per request and so many requests at once; later calls reuse it."""
        if (batch, streams) not in self._backends:
            placement = place(streams, self._cores)
            wide = self.package.has_wide_weights
            opened = open_backend(self.runtime, self.package.model, batch=batch, placement=placement, wide_weights=wide)
            self._backends[batch, streams] = self._opened.enter_context(opened)
        return self._backends[batch, streams]

    def classify(
        self, backend: Backend, images: Sequence[tuple[str, ImageLike]], topk: int, skip: Skip | None = None
    ) -> list[Prediction]:
        """Return the best classes of images with their names, at most a batch; raises as `answer`."""
        decode_image = partial(decode, preprocess_as=self._spec.preprocess_as)
        answers = answer(backend, self._spec, images, decode_image, skip)
        if answers is None:
            return []
        with self._lock:
            for step in self.seconds:
                self.seconds[step] += getattr(answers, step)
        return make_predictions(answers.names, answers.outputs, self._scores, self._labels, topk)

    def close(self) -> None:
        """Free the model."""
        self._backends.clear()
        self._opened.close()
