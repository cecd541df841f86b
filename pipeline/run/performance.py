"""Throughput and latency of a run, from the requests that the runner reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.run.plan import Message, Ready, Request, StageTimes
from pipeline.terminal.progress import Bar

_PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, kw_only=True)
class Performance:
    """What a run measured. Latency is of one request of `batch` images, from its submission, in ms."""

    images: int
    seconds: float
    throughput: float  # images a second
    latency_ms: dict[str, float]  # min, mean, p50, ..., max
    workers: list[dict[str, Any]]  # runtime, version, streams and threads of each process
    stage_seconds: dict[str, float] | None = None  # accuracy run: read, preprocess, infer, write, over all threads


class Recorder:
    """Collects what the workers report; moves the progress bar by finished images."""

    def __init__(self, progress: Bar | None = None) -> None:
        self._progress = progress
        self.ready: list[Ready] = []
        self.requests: list[Request] = []
        self.stages: list[StageTimes] = []

    def __call__(self, message: Message) -> None:
        if isinstance(message, Ready):
            self.ready.append(message)
            if self._progress is not None:
                self._progress.unpause()
        elif isinstance(message, StageTimes):
            self.stages.append(message)
        else:
            self.requests.append(message)
            if self._progress is not None:
                self._progress.update(message.images)

    def summarize(self, begun: float, *, steady: bool) -> Performance:
        """Condense a run that began at `begun`.

        Args:
            begun: `time.perf_counter()` seconds.
            steady: the run was ended by time, so count only while all streams were busy; else count all of it.
        """
        requests = sorted(self.requests, key=lambda request: request.finished)
        if steady:
            requests = keep_while_all_busy(requests, sum(ready.placement.streams for ready in self.ready))
        images = sum(request.images for request in requests)
        seconds = requests[-1].finished - begun
        return Performance(
            images=images,
            seconds=round(seconds, 3),
            throughput=round(images / seconds, 3),
            latency_ms=_latency(np.array([request.finished - request.submitted for request in requests]) * 1e3),
            workers=[{"runtime": r.runtime, "version": r.version, **asdict(r.placement)} for r in self.ready],
            stage_seconds=self._stage_seconds(),
        )

    def _stage_seconds(self) -> dict[str, float] | None:
        if not self.stages:
            return None
        totals = np.array([list(asdict(times).values()) for times in self.stages]).sum(axis=0)
        return {name: round(float(total), 3) for name, total in zip(asdict(self.stages[0]), totals, strict=True)}


def keep_while_all_busy(requests: Sequence[Request], streams: int) -> list[Request]:
    """Return the requests that finished while all streams were computing.

    The streams go idle one by one at the end: of `n` requests, all are busy until number `n - streams + 1` finishes.
    Streams also finish almost together, so a count that ended within a round would be wrong by a part of a round: only
    whole rounds are counted.

    Args:
        requests: by their end.
        streams: requests computed at the same time.

    Returns:
        The first of `requests`; all of them if they are less than two rounds.
    """
    busy = len(requests) - streams + 1
    return list(requests[: busy // streams * streams]) or list(requests)


def _latency(latency_ms: npt.NDArray[np.float64]) -> dict[str, float]:
    values = {"min": latency_ms.min(), "mean": latency_ms.mean()}
    values |= {f"p{rank}": np.percentile(latency_ms, rank) for rank in _PERCENTILES}
    values["max"] = latency_ms.max()
    return {name: round(float(value), 3) for name, value in values.items()}
