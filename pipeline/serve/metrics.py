"""What the server counts, for Prometheus. KServe's own `request_predict_seconds` stands beside these."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

IMAGES = Counter("pipeline_images", "Images answered")
REFUSED = Counter("pipeline_refused_requests", "Requests refused, by reason", ["reason"])
WAITING = Gauge("pipeline_waiting_images", "Images in the queue")
BATCH = Histogram("pipeline_batch_images", "Images computed at once", buckets=_BATCHES)
WAIT = Histogram("pipeline_wait_seconds", "From an image's arrival in the queue to its turn", buckets=_SECONDS)
COMPUTE = Histogram("pipeline_compute_seconds", "Computing one batch", buckets=_SECONDS)
