"""The server's counters, for Prometheus and for Triton's statistics. KServe adds its own histograms."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

IMAGES = Counter("pipeline_images", "Images answered", ["model"])
REFUSED = Counter("pipeline_refused_requests", "Requests refused, by reason", ["reason"])
# Of several workers the sum over those that live.
WAITING = Gauge("pipeline_waiting_images", "Images in the queue", ["model"], multiprocess_mode="livesum")
WORKERS = Gauge("pipeline_workers", "Processes that answer requests", multiprocess_mode="livesum")
RESTARTS = Counter("pipeline_worker_restarts", "Worker processes that ended and were replaced")
BATCH = Histogram("pipeline_batch_images", "Images computed at once", ["model"], buckets=_BATCHES)
WAIT = Histogram(
    "pipeline_wait_seconds", "From an image's arrival in the queue to its turn", ["model"], buckets=_SECONDS
)
DECODE = Histogram("pipeline_decode_seconds", "Decoding and preparing one image file", ["model"], buckets=_SECONDS)
COMPUTE = Histogram(
    "pipeline_compute_seconds", "Computing one batch, by its images", ["model", "batch"], buckets=_SECONDS
)


@dataclass
class Duration:
    """How often something was done, and its total time."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.seconds += seconds

    def as_dict(self) -> dict[str, int]:
        """Return it in the form of Triton's statistics."""
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


@dataclass
class Statistics:
    """Statistics of one package since it was loaded."""

    success: Duration = field(default_factory=Duration)  # requests answered
    fail: Duration = field(default_factory=Duration)  # requests refused or failed
    queue: Duration = field(default_factory=Duration)  # images that waited
    decode: Duration = field(default_factory=Duration)  # image files
    images: int = 0  # answered
    batches: dict[int, Duration] = field(default_factory=dict)  # computing, by images at once
    last_ms: int = 0  # since the epoch: the last request


class Meter:
    """Counts what one loaded package does. Any thread may call it."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._images, self._waiting = IMAGES.labels(model), WAITING.labels(model)
        self._batch, self._wait, self._decode = BATCH.labels(model), WAIT.labels(model), DECODE.labels(model)
        self._lock = threading.Lock()
        self._statistics = Statistics()

    def statistics(self) -> dict[str, Any]:
        """Return Triton's statistics of a model, but for its name and version."""
        with self._lock:
            found = self._statistics
            computing = [(size, duration.as_dict()) for size, duration in sorted(found.batches.items())]
            compute = Duration(
                sum(each.count for each in found.batches.values()), sum(each.seconds for each in found.batches.values())
            )
            nothing = Duration().as_dict()
            return {
                "last_inference": found.last_ms,
                "inference_count": found.images,
                "execution_count": compute.count,
                "inference_stats": {
                    "success": found.success.as_dict(),
                    "fail": found.fail.as_dict(),
                    "queue": found.queue.as_dict(),
                    "compute_input": found.decode.as_dict(),
                    "compute_infer": compute.as_dict(),
                    "compute_output": nothing,
                    "cache_hit": nothing,
                    "cache_miss": nothing,
                },
                "batch_stats": [
                    {"batch_size": size, "compute_input": nothing, "compute_infer": each, "compute_output": nothing}
                    for size, each in computing
                ],
            }

    def queued(self, images: int) -> None:
        self._waiting.inc(images)

    def left_queue(self, images: int) -> None:
        self._waiting.dec(images)

    def waited(self, seconds: Sequence[float]) -> None:
        """Count images whose turn has come."""
        for each in seconds:
            self._wait.observe(each)
        with self._lock:
            self._statistics.queue.add(sum(seconds), len(seconds))

    def computed(self, images: int, seconds: float) -> None:
        """Count a batch."""
        COMPUTE.labels(self._model, str(images)).observe(seconds)
        self._batch.observe(images)
        with self._lock:
            self._statistics.batches.setdefault(images, Duration()).add(seconds)

    def decoded(self, seconds: float) -> None:
        """Count an image file."""
        self._decode.observe(seconds)
        with self._lock:
            self._statistics.decode.add(seconds)

    def answered(self, images: int, seconds: float) -> None:
        """Count a request that got its answer."""
        self._images.inc(images)
        with self._lock:
            self._statistics.images += images
            self._statistics.success.add(seconds)
            self._statistics.last_ms = int(time.time() * 1000)

    def failed(self, seconds: float) -> None:
        """Count a request that got none."""
        with self._lock:
            self._statistics.fail.add(seconds)
