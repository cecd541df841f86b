"""Predict on the nodes of a cluster: the answers of `Classifier.predict`, in the same order."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline import artefacts
from pipeline.data.storage import REQUESTS_AT_ONCE, Location, Url
from pipeline.errors import DataError
from pipeline.host.cluster import Cluster
from pipeline.packages.package import Package
from pipeline.run.predict import Classifier, Prediction, Skip

_CHUNK = 128  # images a task of Ray, some seconds of a core: what a node that is lost may cost


@dataclass(frozen=True)
class _Shipment:
    """What a worker needs: its node may not have the package."""

    files: dict[str, bytes]  # of the package, by name
    runtime: str
    batch: int
    topk: int
    skips: bool  # images that cannot be read


@dataclass(frozen=True)
class _Skipped:
    name: str
    reason: str


@dataclass(frozen=True)
class _Answers:
    """A worker's, to a chunk of batches, in their order."""

    images: list[Prediction | _Skipped]
    seconds: dict[str, float]  # as `Classifier.seconds`


_Batch = Sequence[tuple[int, Location]]  # images with their numbers


def predict(
    cluster: Cluster, classifier: Classifier, images: Sequence[Location], topk: int = 5, *, skip: Skip | None = None
) -> Generator[Prediction, None, None]:
    """Yield the best classes of each image, in their order; a worker a core of the cluster.

    Args:
        cluster: its nodes must see the images by the same names; the package is sent to them.
        classifier: says which package, runtime and batch; its `seconds` count those of all workers.
        images: files.
        topk: classes an image.
        skip: as of `Classifier.predict`.

    Raises:
        DataError: an image cannot be read; it is named.
        PipelineError: the runtime or the cluster fails, or the scores are not finite.
    """
    size = classifier.batch_for(len(images))
    numbered = list(enumerate(images, start=1))
    batches = [numbered[start : start + size] for start in range(0, len(numbered), size)]
    files = _content(classifier.package)
    shipment = _Shipment(files, classifier.runtime.value, size, topk, skips=skip is not None)
    chunk = max(1, _CHUNK // size)
    with cluster.connect() as nodes, closing(nodes.run(_open, shipment, batches, chunk=chunk, in_order=True)) as run:
        for answers in run:
            for name, spent in answers.seconds.items():
                classifier.seconds[name] += spent
            for answer in answers.images:
                if isinstance(answer, Prediction):
                    yield answer
                else:
                    assert skip is not None  # else the worker raises
                    skip(answer.name, DataError(answer.reason))


def _content(package: Package) -> dict[str, bytes]:
    names = [artefacts.MANIFEST, *artefacts.read_manifest(package.folder)["files"]]
    return {name: (package.folder / name).read_bytes() for name in names}


def _open(shipment: _Shipment) -> Callable[[Sequence[_Batch]], _Answers]:
    """Open the package in a worker, on one core; it stays open for as long as the worker runs."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in shipment.files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        classifier = Classifier(folder, runtime=shipment.runtime, batch=shipment.batch, cores=1)
        classifier.open()

    def one(batch: _Batch) -> list[Prediction | _Skipped]:
        skipped: list[Prediction | _Skipped] = []
        skip = (lambda name, reason: skipped.append(_Skipped(name, str(reason)))) if shipment.skips else None
        return [*classifier.predict_batch(batch, shipment.topk, skip=skip), *skipped]

    def answer(batches: Sequence[_Batch]) -> _Answers:
        classifier.seconds = dict.fromkeys(classifier.seconds, 0.0)
        far = any(isinstance(image, Url) for batch in batches for _, image in batch)
        # Two, so that a batch is always being read while another computes.
        with ThreadPoolExecutor(REQUESTS_AT_ONCE if far else 2) as pool:
            found = [each for answers in pool.map(one, batches) for each in answers]
        return _Answers(found, classifier.seconds)

    return answer
