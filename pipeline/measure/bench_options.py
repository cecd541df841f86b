"""What a bench measures and answers, checked when it is put together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.storage import Url
from pipeline.errors import ConfigError
from pipeline.host.cluster import Cluster
from pipeline.run.plan import Limit
from pipeline.runtimes.base import Runtime

FilePath = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What `bench` measures and answers, and how; the flags of the command.

    >>> quick = pipeline.BenchOptions(runtime="onnxruntime", batch=1, duration=0.5)
    >>> pipeline.bench(options=quick).load.batch
    1

    The load: where `batch`, `instances` and `runtime` are all None, it is what `bench --sweep` found best on this
    machine; otherwise each of them that is None is 1, 1 and auto.

    Raises:
        ConfigError: the limits of the performance run are out of range, or are given where there is none.
    """

    batch: int | None = None  # images per request
    instances: int | None = None  # requests in flight, over all processes
    processes: int = 1  # worker processes
    runtime: Runtime | str | None = None  # auto, openvino or onnxruntime

    shape: Sequence[int] | None = None  # [C, H, W] that the package must take; None: any
    vdsp_params: FilePath | None = None  # a preprocessing file in place of the package's own

    speed: bool = True  # measure throughput and latency, on synthetic images
    duration: float | None = None  # seconds of that; None: 10
    iterations: int | None = None  # requests of that, in place of a time
    reference: bool = False  # measure the build's float32 model too, in alternating rounds

    datalist: FilePath | None = None  # npz paths whose images are answered; None: the build's own evaluation images
    results: FilePath | Url | None = None  # folder of the answers; None: output/ with a datalist, else none are made
    cluster: Cluster | None = None  # where images are answered, in place of this machine

    def __post_init__(self) -> None:
        if self.iterations is not None and self.iterations < 1:
            raise ConfigError(f"--iterations: must be at least 1, got {self.iterations}")
        if self.duration is not None and not 0 < self.duration < float("inf"):
            raise ConfigError(f"--duration: must be above 0, got {self.duration}")
        given = {"reference": self.reference, "iterations": self.iterations, "duration": self.duration}
        unused = [flag for flag, value in given.items() if value]
        if unused and not self.speed:
            raise ConfigError(f"--{unused[0]}: a run over --datalist ends with its images; leave one of the two out")

    @property
    def limit(self) -> Limit:
        """When the performance run ends."""
        return Limit(Limit.duration_s if self.duration is None else self.duration, self.iterations)
