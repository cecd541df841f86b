"""Predict: the best classes of images, from files, Pillow images or arrays. `from pipeline import Classifier`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice

from pipeline.host.hardware import available_cores
from pipeline.packages.choice import choose_for
from pipeline.packages.origin import open_package_of
from pipeline.packages.package import Package, open_package
from pipeline.run import sweep, sweep_record
from pipeline.run.answer import Lane, Skip
from pipeline.run.inputs import ImageLike, name_images
from pipeline.run.prediction import Prediction
from pipeline.runtimes.base import Runtime

_WAITING = 2  # batches that are read ahead for each thread


class Classifier:
    """A package, ready to classify images. Use it in a `with`, or `close` it; one thread at a time.

    >>> with pipeline.Classifier("deploy_weights/flowers-int8-percentile-3_32_32-vacc/flowers") as classifier:
    ...     for prediction in classifier.predict("photos", topk=2):
    ...         print(prediction.source, prediction.labels[0], f"{prediction.scores[0]:.0%}")
    photos/rose.jpg rose 9...%
    photos/tulip.png tulip 9...%

    Attributes:
        package: the opened package.
        runtime: that it runs in.
        batch: images computed at once.
        notes: lines on what is doubtful about the package in this runtime on this machine.
        seconds: spent in "read", "preprocess" and "infer", summed over all threads; infer includes waiting for a
            stream.
    """

    def __init__(
        self,
        model: Package | str | os.PathLike[str] | None = None,
        *,
        model_name: str | None = None,
        runtime: Runtime | str = "auto",
        batch: int = 0,
        cores: int | None = None,
    ) -> None:
        """Open a package.

        Args:
            model: a package, `folder/name`, or the folder; None: the one built last under deploy_weights/.
            model_name: one of PaddleClas's networks, in place of `model`: its package that was built last under
                deploy_weights/.
            runtime: auto, openvino or onnxruntime; auto is what `bench --sweep` found best, else what the build did,
                else OpenVINO on x86 and ONNX Runtime elsewhere.
            batch: images computed at once; 0: what `bench --sweep` found best, else 8.
            cores: of this machine to compute on; None: all that this process may use.

        Raises:
            PipelineError: there is no such package, a file of it was changed, or the runtime is not installed.
            ValueError: `runtime` is none of those, `batch` is negative, `cores` is less than 1, or both `model` and
                `model_name` are given.
        """
        if model is not None and model_name is not None:
            raise ValueError("model and model_name: expected one of them")
        if batch < 0:
            raise ValueError(f"batch: expected 0 or more, got {batch}")
        if cores is not None and cores < 1:
            raise ValueError(f"cores: expected 1 or more, got {cores}")
        wanted = Runtime(runtime)
        if model_name is not None:
            model = open_package_of(model_name, "model_name")
        self.package = model if isinstance(model, Package) else open_package(model)
        swept = sweep_record.recall_for(self.package, wanted)
        chosen = choose_for(self.package, Runtime(swept.runtime) if swept else wanted)
        self.runtime, self.notes = chosen.runtime, chosen.notes
        self.batch = batch or (swept.batch if swept else sweep.UNSWEPT_BATCH)
        self._cores = cores or available_cores()
        self._lane = Lane(self.package, self.runtime, self._cores)
        self.seconds = self._lane.seconds

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model."""
        self._lane.close()

    def predict(
        self, images: ImageLike | Iterable[ImageLike], topk: int = 5, *, skip: Skip | None = None
    ) -> Generator[Prediction, None, None]:
        """Yield the best classes of each image, in their order; some images are read ahead while others compute.

        Args:
            images: one image, a folder, or an iterable of either. An image is a path or URL (of what Pillow reads, or
                of an npz of `image2npz`), a Pillow image of any mode, or an array uint8 [H, W, 3], RGB; an array
                [N, H, W, 3] is N images. Of a folder all images below it count, sorted by name.
            topk: classes per image, as far as there are so many.
            skip: called with the name of an image that cannot be read and the reason, which is left out then; None: it
                is raised.

        Raises:
            DataError: an image cannot be read, which is named, or a folder holds no images.
            BackendError: the runtime fails, or the scores of an image are not finite.
            TypeError: `images` is nothing of the kind.
            ValueError: `topk` is less than 1.
        """
        if topk < 1:
            raise ValueError(f"topk: expected 1 or more, got {topk}")
        named = name_images(images)
        first = list(islice(named, self.batch))
        size = choose_request_size(len(first), self.batch)
        backend = self._lane.open(size, streams=1 if size < self.batch else self._cores)
        threads = backend.placement.streams + 1
        pool = ThreadPoolExecutor(threads)
        waiting: deque[Future[list[Prediction]]] = deque()
        rest = chain(first, named)
        try:
            while request := list(islice(rest, size)):
                waiting.append(pool.submit(self._lane.classify, backend, request, topk, skip))
                if len(waiting) >= _WAITING * threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def choose_request_size(images: int, batch: int) -> int:
    """Return how many images are computed at once, given their number (a batch stands for any larger number).

    Few images are computed one at a time, by all cores: an incomplete batch takes as long as a full one.
    """
    return 1 if images < batch else batch
