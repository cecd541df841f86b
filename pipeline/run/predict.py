"""Predict: the best classes of images, from files, Pillow images or arrays. `from pipeline import Classifier`."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data import npz, preprocess
from pipeline.data.image_kinds import IMAGE_SUFFIXES
from pipeline.data.sources import MAX_IMAGE_FILE_BYTES
from pipeline.data.storage import Location, Url
from pipeline.errors import DataError
from pipeline.host.hardware import available_cores
from pipeline.packages.choice import choose_for
from pipeline.packages.package import open_package
from pipeline.quant.divergence import probabilities
from pipeline.run import sweep
from pipeline.runtimes.base import Backend, Runtime
from pipeline.runtimes.opening import open_backend, place

ImageLike: TypeAlias = "str | os.PathLike[str] | Url | Image.Image | npt.NDArray[np.uint8]"

SUFFIXES = IMAGE_SUFFIXES | {".npz"}
_WAITING = 2  # batches that are read ahead for each thread


@dataclass(frozen=True)
class Prediction:
    """The best classes of one image, best first; all tuples are of one length."""

    source: str  # the file as it was given; "image 3" for the third that was no file
    class_ids: tuple[int, ...]  # indices of the network's output
    scores: tuple[float, ...]  # probabilities; where the network ends in sigmoids, of each label by itself
    labels: tuple[str, ...]  # of the package's classes


Skip = Callable[[str, DataError], None]


class Classifier:
    """A package, ready to classify images. Use it in a `with`, or `close` it; one thread at a time.

    >>> with Classifier("deploy_weights/.../wide_resnet50_2") as classifier:
    ...     for prediction in classifier.predict(["cat.jpg", "dog.png"], topk=3):
    ...         print(prediction.source, prediction.labels[0], prediction.scores[0])
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        runtime: str = "auto",
        batch: int = 0,
        cores: int | None = None,
    ) -> None:
        """Open a package.

        Args:
            model: `folder/name`, or the folder; None: the one built last under deploy_weights/.
            runtime: auto, openvino or onnxruntime; auto is what `bench --sweep` found best, else what the build did,
                else OpenVINO on x86 and ONNX Runtime elsewhere.
            batch: images computed at once; 0: what `bench --sweep` found best, else 8.
            cores: of this machine to compute on; None: all that this process may use.

        Raises:
            PipelineError: there is no such package, a file of it was changed, or the runtime is not installed.
            ValueError: `runtime` is none of those, or `batch` is negative.
        """
        if batch < 0:
            raise ValueError(f"batch: expected 0 or more, got {batch}")
        wanted = Runtime(runtime)
        self.package = open_package(None if model is None else Path(model))
        swept = sweep.recall_for(self.package, wanted)
        chosen = choose_for(self.package, Runtime(swept.runtime) if swept else wanted)
        self.runtime, self.notes = chosen.runtime, chosen.notes  # lines on what is doubtful about it here
        self._batch = batch or (swept.batch if swept else sweep.UNSWEPT_BATCH)
        self._cores = cores or available_cores()
        self._spec = self.package.preprocess()
        self._scores = self.package.scores
        self._labels = [known.name for known in self.package.classes()]
        self._opened = ExitStack()
        self._backends: dict[tuple[int, int], Backend] = {}  # by images a request and requests at once
        self.seconds = {"read": 0.0, "preprocess": 0.0, "infer": 0.0}  # of all threads, infer with waiting for its turn
        self._lock = threading.Lock()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model."""
        self._backends.clear()
        self._opened.close()

    def predict(
        self, images: Iterable[ImageLike], topk: int = 5, *, skip: Skip | None = None
    ) -> Generator[Prediction, None, None]:
        """Yield the best classes of each image, in their order; some images are read ahead while others compute.

        Args:
            images: files (what Pillow reads, or npz of `image2npz`), Pillow images, or arrays uint8 [H, W, 3], RGB.
            topk: classes an image, as far as there are so many.
            skip: called with the name of an image that cannot be read and the reason, which is left out then; None: it
                is raised.

        Raises:
            DataError: an image cannot be read; it is named.
            PipelineError: the runtime fails, or the scores are not finite.
            ValueError: `topk` is less than 1.
        """
        if topk < 1:
            raise ValueError(f"topk: expected 1 or more, got {topk}")
        numbered = enumerate(images, start=1)
        first = list(islice(numbered, self._batch))
        size = self.batch_for(len(first))
        backend = self._backend(size, streams=1 if size < self._batch else self._cores)
        threads = backend.placement.streams + 1
        pool = ThreadPoolExecutor(threads)
        waiting: deque[Future[list[Prediction]]] = deque()
        rest = chain(first, numbered)
        try:
            while batch := list(islice(rest, size)):
                waiting.append(pool.submit(self._batch_of, backend, batch, topk, skip))
                if len(waiting) >= _WAITING * threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def batch_for(self, images: int) -> int:
        """Return how many of so many images (or more, from a batch on) are computed at once.

        Few images are computed one at a time, by all cores: a batch that is not full takes as long as a full one.
        """
        return 1 if images < self._batch else self._batch

    def predict_batch(
        self, images: Sequence[tuple[int, ImageLike]], topk: int, *, skip: Skip | None = None
    ) -> list[Prediction]:
        """As `predict`, of at most a batch of images with their numbers, in one request on one stream."""
        return self._batch_of(self._backend(self._batch, streams=1), images, topk, skip)

    def open(self) -> None:
        """Load the model for `predict_batch` now; the package's files are not read any more then."""
        self._backend(self._batch, streams=1)

    def _backend(self, batch: int, streams: int) -> Backend:
        if (batch, streams) not in self._backends:
            placement = place(streams, self._cores)
            wide = self.package.has_wide_weights
            opened = open_backend(self.runtime, self.package.model, batch=batch, placement=placement, wide_weights=wide)
            self._backends[batch, streams] = self._opened.enter_context(opened)
        return self._backends[batch, streams]

    def _batch_of(
        self, backend: Backend, images: Sequence[tuple[int, ImageLike]], topk: int, skip: Skip | None
    ) -> list[Prediction]:
        names, prepared = [], []
        begun = time.perf_counter()
        preparing = 0.0
        for number, image in images:
            if isinstance(image, str | Url | os.PathLike):
                name = str(image) if isinstance(image, Url) else os.fspath(image)
            else:
                name = f"image {number}"
            try:
                pixels = _pixels(image, name)
                decoded = time.perf_counter()
                prepared.append(preprocess.prepare(self._spec, pixels, raw=backend.input.dtype == "uint8"))
                preparing += time.perf_counter() - decoded
                names.append(name)
            except DataError as err:
                reason = err if str(err).startswith(name) else DataError(f"{name}: {err}")
                if skip is None:
                    raise reason from None
                skip(name, reason)
        if not prepared:
            return []
        ready = time.perf_counter()
        scores = backend.infer(np.stack(prepared))
        with self._lock:
            self.seconds["read"] += ready - begun - preparing
            self.seconds["preprocess"] += preparing
            self.seconds["infer"] += time.perf_counter() - ready
        finite = np.isfinite(scores).all(axis=1)
        if not finite.all():
            raise DataError(f"{names[int(np.argmin(finite))]}: the model's output holds NaN or Inf")
        rows = zip(names, probabilities(scores, self._scores), strict=True)
        return [best_classes(name, row, self._labels, topk) for name, row in rows]


def best_classes(source: str, shares: npt.NDArray[np.float64], labels: Sequence[str], topk: int) -> Prediction:
    """Return the best of an image's scores, float64 [classes], as `accuracy.probabilities` gives them.

    Of equal ones the lower class counts as better, as `eval` has it.
    """
    best = np.argsort(-shares, kind="stable")[:topk]
    return Prediction(
        source,
        tuple(int(index) for index in best),
        tuple(float(shares[index]) for index in best),
        tuple(labels[index] for index in best),
    )


def _pixels(image: ImageLike, name: str) -> preprocess.Pixels:
    """Return uint8 [3, H, W], RGB."""
    if isinstance(image, Url):
        if image.suffix == ".npz":
            return npz.read_image_npz(image)
        return preprocess.decode(image.read_bytes(MAX_IMAGE_FILE_BYTES))
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        return npz.read_image_npz(path) if path.suffix == ".npz" else preprocess.decode(path)
    if isinstance(image, Image.Image):
        array = np.asarray(image.convert("RGB"))
    else:
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise DataError(f"{name}: expected uint8 [H, W, 3], got {array.dtype} {list(array.shape)}")
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def find_images(paths: Sequence[Location]) -> list[Location]:
    """Return files as they are and the images below folders, in order of their names.

    Raises:
        DataError: a path is not there, or a folder holds no image.
    """
    found: list[Location] = []
    for path in paths:
        if path.is_dir():
            below = _images_below(path)
            if not below:
                raise DataError(f"{path}: no images in this folder (of {', '.join(sorted(SUFFIXES))})")
            found += below
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path}: no such file")
    return found


def _images_below(folder: Location) -> Sequence[Location]:
    if isinstance(folder, Url):
        return [folder / name for name in folder.files(deep=True) if Path(name).suffix.lower() in SUFFIXES]
    return sorted(each for each in folder.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())


def as_text(prediction: Prediction) -> str:
    """Return a line as PaddleClas prints it."""
    scores = ", ".join(f"{score:.2f}" for score in prediction.scores)
    return (
        f"{prediction.source}:\tclass id(s): {list(prediction.class_ids)}, score(s): [{scores}], "
        f"label_name(s): {list(prediction.labels)}"
    )


def as_dict(prediction: Prediction) -> dict[str, Any]:
    """Return plain data, with the keys of PaddleClas."""
    return {
        "file_name": prediction.source,
        "class_ids": list(prediction.class_ids),
        "scores": [round(score, 6) for score in prediction.scores],
        "label_names": list(prediction.labels),
    }


def as_rows(prediction: Prediction) -> list[list[object]]:
    """Return rows of a table: file, rank from 1, class, score, label."""
    ranked = zip(prediction.class_ids, prediction.scores, prediction.labels, strict=True)
    return [
        [prediction.source, rank, class_id, f"{score:.6f}", label]
        for rank, (class_id, score, label) in enumerate(ranked, start=1)
    ]


COLUMNS = ("file", "rank", "class_id", "score", "label")
