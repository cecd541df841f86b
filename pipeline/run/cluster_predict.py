"""Predict on the nodes of a cluster: the answers of `Classifier.predict`, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from pipeline import artefacts
from pipeline.data.storage import REQUESTS_AT_ONCE, Location, Url
from pipeline.errors import DataError
from pipeline.host.cluster import Cluster
from pipeline.packages.package import open_package
from pipeline.run.answer import Lane, Skip
from pipeline.run.predict import Classifier, choose_request_size
from pipeline.run.prediction import Prediction
from pipeline.run.shipment import CHUNK_IMAGES, Shipment
from pipeline.runtimes.base import Runtime


@dataclass(frozen=True)
class _Setup:
    """What a worker needs."""

    package: Shipment
    runtime: Runtime
    batch: int
    topk: int
    skips: bool  # images that cannot be read


@dataclass(frozen=True)
class _Skipped:
    name: str
    reason: str


@dataclass(frozen=True)
class _Answers:
    """A worker's answers to a chunk of batches, in their order."""

    images: list[Prediction | _Skipped]
    seconds: dict[str, float]  # as `Classifier.seconds`


def predict(
    cluster: Cluster, classifier: Classifier, images: Sequence[Location], topk: int = 5, *, skip: Skip | None = None
) -> Generator[Prediction, None, None]:
    """Yield the best classes of each image, in their order, with one worker for each core of the cluster.

    Args:
        cluster: its nodes must see the images by the same names; the package is sent to them.
        classifier: says which package, runtime and batch; its `seconds` count those of all workers.
        images: files.
        topk: classes per image.
        skip: as of `Classifier.predict`.

    Raises:
        DataError: an image cannot be read; it is named.
        PipelineError: the runtime or the cluster fails, or the scores are not finite.
    """
    size = choose_request_size(len(images), classifier.batch)
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    folder = classifier.package.folder
    files = Shipment.pack(folder, [artefacts.MANIFEST, *artefacts.read_manifest(folder)["files"]])
    setup = _Setup(files, classifier.runtime, size, topk, skips=skip is not None)
    chunk = max(1, CHUNK_IMAGES // size)
    with cluster.connect() as nodes, closing(nodes.run(_open, setup, batches, chunk=chunk, in_order=True)) as run:
        for answers in run:
            for name, spent in answers.seconds.items():
                classifier.seconds[name] += spent
            for answer in answers.images:
                if isinstance(answer, Prediction):
                    yield answer
                else:
                    assert skip is not None  # else the worker raises
                    skip(answer.name, DataError(answer.reason))


def _open(setup: _Setup) -> Callable[[Sequence[Sequence[Location]]], _Answers]:
    """Open the package in a worker, on one core; it stays open for as long as the worker runs."""
    with setup.package.unpack() as folder:
        lane = Lane(open_package(folder), setup.runtime, cores=1)
        backend = lane.open(setup.batch, streams=1)

    def classify(batch: Sequence[Location]) -> list[Prediction | _Skipped]:
        skipped: list[Prediction | _Skipped] = []
        skip = (lambda name, reason: skipped.append(_Skipped(name, str(reason)))) if setup.skips else None
        return [*lane.classify(backend, [(str(image), image) for image in batch], setup.topk, skip), *skipped]

    def answer(batches: Sequence[Sequence[Location]]) -> _Answers:
        lane.seconds = dict.fromkeys(lane.seconds, 0.0)
        far = any(isinstance(image, Url) for batch in batches for image in batch)
        # Two, so that a batch is always being read while another computes.
        with ThreadPoolExecutor(REQUESTS_AT_ONCE if far else 2) as pool:
            found = [each for answers in pool.map(classify, batches) for each in answers]
        return _Answers(found, lane.seconds)

    return answer
