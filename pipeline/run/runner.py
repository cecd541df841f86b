"""The batched runner: requests in flight over one or more worker processes. Bench, eval and predict share it."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import npz, preprocess
from pipeline.data.storage import REQUESTS_AT_ONCE, Location, Url, names_in
from pipeline.errors import BackendError, DataError
from pipeline.host.cluster import Cluster
from pipeline.host.hardware import available_cores
from pipeline.host.processes import Barrier, run_sharing, run_workers
from pipeline.runtimes.base import Backend, Output, Placement, Runtime
from pipeline.runtimes.opening import open_backend, place, survives_fork
from pipeline.terminal import console

_CLUSTER_CHUNK = 128  # images a task of Ray, some seconds of a core: what a node that is lost may cost
# Fewer finished requests a stream than this say nothing about throughput, however long they took.
_LEAST_ROUNDS = 4
# Requests in flight a stream when images are read from disk: each holds its images in memory, and a stream needs one
# that computes, one that is ready, and some that are being read.
_MOST_IN_FLIGHT = 4


@dataclass(frozen=True)
class Plan:
    """How a model is run. `instances` and `cores` are totals over all processes."""

    model: Path
    runtime: Runtime
    spec: PreprocessSpec
    batch: int = 1  # images a request (-b)
    instances: int = 1  # requests in flight (-i)
    processes: int = 1  # worker processes (-p)
    cores: int = 0  # 0: all that this process may use
    wide_weights: bool = False  # as of `open_backend`

    def share(self, worker: int) -> Plan:
        """Return the part of worker number `worker`: its requests in flight and cores, at least one of each."""
        cores = self.cores or available_cores()

        def part(total: int) -> int:
            return max(1, total // self.processes + (worker < total % self.processes))

        return replace(self, instances=part(self.instances), cores=part(cores), processes=1)

    def placement(self) -> Placement:
        return place(self.instances, self.cores or available_cores())


@dataclass(frozen=True)
class Sample:
    """One image of an accuracy run and the file that its result goes to."""

    image: Location
    result: Location


@dataclass(frozen=True)
class Ready:
    """A worker has loaded and warmed up its model."""

    runtime: str
    version: str
    placement: Placement


@dataclass(frozen=True)
class Request:
    """One finished request; times are `time.perf_counter()` seconds, which all processes of a machine share."""

    submitted: float
    finished: float
    images: int


@dataclass(frozen=True)
class StageTimes:
    """Seconds that one request's images spent in each step."""

    read: float
    preprocess: float
    infer: float
    write: float


@dataclass(frozen=True)
class Limit:
    """When a performance run ends: after `iterations` requests in all, or else after `duration_s` seconds."""

    duration_s: float = 10.0
    iterations: int | None = None


Message = Ready | Request | StageTimes
Report = Callable[[Message], None]


def measure(plan: Plan, limit: Limit, on_message: Report) -> float:
    """Run prepared synthetic images through the model, always `instances` requests in flight.

    Returns:
        The moment (`time.perf_counter()`) when all workers were warm and the first request was submitted.
    """
    processes = min(plan.processes, limit.iterations or plan.processes)
    plan = replace(plan, processes=processes)
    tasks = [(plan.share(worker), _share_limit(limit, processes, worker)) for worker in range(processes)]
    return _run(_measure_worker, tasks, on_message)


def _share_limit(limit: Limit, processes: int, worker: int) -> Limit:
    if limit.iterations is None:
        return limit
    return replace(limit, iterations=limit.iterations // processes + (worker < limit.iterations % processes))


def unanswered(samples: Sequence[Sample], batch: int) -> list[Sequence[Sample]]:
    """Return the requests, `batch` samples each, that lack a result.

    A request is done again as a whole: which images share a batch may change the last bits of a float32 answer, and a
    run that was interrupted must end with the results of one that was not.
    """
    requests = [samples[start : start + batch] for start in range(0, len(samples), batch)]
    present = {folder: names_in(folder) for folder in {sample.result.parent for sample in samples}}
    return [request for request in requests if not all(s.result.name in present[s.result.parent] for s in request)]


def infer_samples(plan: Plan, samples: Sequence[Sample], on_message: Report, cluster: Cluster | None = None) -> float:
    """Read, preprocess, infer and write the samples of every request that is `unanswered`.

    Requests are independent: while some compute, others read and preprocess.

    Args:
        cluster: where to compute, a worker for every `plan.instances` cores; its nodes must see the images and the
            results by the same names. None: here.

    Returns:
        The moment (`time.perf_counter()`) when all workers were warm and the work began; with a cluster, whose workers
        come and go, that when the work was handed out.

    Raises:
        PipelineError: an image cannot be read or prepared, or the runtime fails; results written so far stay.
    """
    requests = unanswered(samples, plan.batch)
    if not requests:
        return time.perf_counter()
    if cluster is not None:
        return _infer_on(cluster, plan, requests, on_message)
    processes = min(plan.processes, len(requests))
    plan = replace(plan, processes=processes)
    tasks = [(plan.share(worker), requests[worker::processes]) for worker in range(processes)]
    return _run(_infer_worker, tasks, on_message)


def _run(work: Callable[..., None], tasks: Sequence[tuple[Plan, Any]], on_message: Report) -> float:
    """Run a worker a task; several share one model in memory where the runtime lets them."""
    plans = [plan for plan, _ in tasks]
    alike = all(plan.placement() == plans[0].placement() for plan in plans)
    if len(tasks) > 1 and alike and survives_fork(plans[0].runtime, plans[0].placement()):
        return run_sharing(work, tasks, partial(_open, plans[0]), on_message)
    return run_workers(work, tasks, on_message)


@contextlib.contextmanager
def _open(plan: Plan) -> Iterator[Backend]:
    begun = time.perf_counter()
    placement, wide = plan.placement(), plan.wide_weights
    with open_backend(plan.runtime, plan.model, batch=plan.batch, placement=placement, wide_weights=wide) as backend:
        opened = time.perf_counter()
        _warm_up(backend, plan.batch)
        warm = time.perf_counter()
        console.detail(
            f"{backend.name} {backend.version} opened {plan.model} for {plan.batch} images in {opened - begun:.2f} s, "
            f"warm after {warm - opened:.2f} s more; {backend.placement}, input {backend.input.dtype}"
        )
        yield backend


@contextlib.contextmanager
def _opened(plan: Plan, shared: Backend | None, report: Report) -> Iterator[Backend]:
    """Yield the model, which may be open already, and say so."""
    with contextlib.nullcontext(shared) if shared else _open(plan) as backend:
        report(Ready(backend.name, backend.version, backend.placement))
        yield backend


def _warm_up(backend: Backend, batch: int) -> None:
    nothing = np.zeros((batch, *(axis or 1 for axis in backend.input.shape[1:])), backend.input.dtype)
    streams = backend.placement.streams
    if streams == 1:  # here: a thread that ends just before a fork may hold a lock of OpenVINO's
        backend.infer(nothing)
        return
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(backend.infer, [nothing] * streams))


def _takes_pixels(backend: Backend) -> bool:
    return backend.input.dtype == "uint8"


def _measure_worker(task: tuple[Plan, Limit], report: Report, barrier: Barrier, shared: Backend | None = None) -> None:
    plan, limit = task
    synthetic = preprocess.synthetic(plan.spec, seed=0)
    with _opened(plan, shared, report) as backend:
        image = preprocess.prepare(plan.spec, synthetic, raw=_takes_pixels(backend))
        batch = np.ascontiguousarray(np.broadcast_to(image, (plan.batch, *image.shape)))
        streams = backend.placement.streams
        barrier()
        begun = time.perf_counter()
        starts = _Starts(limit, begun, least=_LEAST_ROUNDS * streams)
        # First come, first served. Threads that compete for the streams do not queue: the one that has just finished
        # gets its stream again at once, and the others wait for seconds.
        in_flight = deque([begun] * max(plan.instances, streams))

        def keep_a_stream_busy() -> None:
            while starts.one_more():
                submitted = in_flight.popleft()
                backend.infer(batch)
                finished = time.perf_counter()
                in_flight.append(finished)  # the next request takes its place
                report(Request(submitted, finished, plan.batch))

        _in_threads([keep_a_stream_busy] * streams, streams, on_failure=starts.stop)


class _Starts:
    """Says whether one more request may start computing."""

    def __init__(self, limit: Limit, begun: float, least: int) -> None:
        self._iterations = limit.iterations
        self._deadline = begun + limit.duration_s
        self._least = least
        self._started = 0
        self._stopped = False
        self._lock = threading.Lock()

    def one_more(self) -> bool:
        with self._lock:
            if self._stopped:
                goes_on = False
            elif self._iterations is not None:
                goes_on = self._started < self._iterations
            else:
                goes_on = self._started < self._least or time.perf_counter() < self._deadline
            self._started += goes_on
            return goes_on

    def stop(self) -> None:
        self._stopped = True


def _infer_worker(
    task: tuple[Plan, Sequence[Sequence[Sample]]], report: Report, barrier: Barrier, shared: Backend | None = None
) -> None:
    plan, requests = task
    with _opened(plan, shared, report) as backend:
        barrier()
        _infer_requests(plan, backend, requests, report)


def _infer_requests(plan: Plan, backend: Backend, requests: Sequence[Sequence[Sample]], report: Report) -> None:
    streams = backend.placement.streams
    # One more than the streams, so that a batch is always being prepared while others compute.
    threads = max(streams + 1, min(plan.instances, _MOST_IN_FLIGHT * streams))
    if any(isinstance(place, Url) for request in requests for s in request for place in (s.image, s.result)):
        threads = REQUESTS_AT_ONCE * streams
    jobs = [lambda request=request: _infer_request(plan.spec, backend, request, report) for request in requests]
    _in_threads(jobs, threads)


def _infer_request(spec: PreprocessSpec, backend: Backend, request: Sequence[Sample], report: Report) -> None:
    begun = time.perf_counter()
    images = [npz.read_image_npz(sample.image) for sample in request]
    read = time.perf_counter()
    raw = _takes_pixels(backend)
    batch = np.stack([_prepare(spec, image, raw, sample.image) for image, sample in zip(images, request, strict=True)])
    prepared = time.perf_counter()
    outputs = backend.infer(batch)
    inferred = time.perf_counter()
    _check_outputs(outputs, request)
    for sample, output in zip(request, outputs, strict=True):
        _write(sample.result, output[None])
    written = time.perf_counter()
    report(StageTimes(read - begun, prepared - read, inferred - prepared, written - inferred))
    report(Request(begun, written, len(request)))


@dataclass(frozen=True)
class _Shipment:
    """What a worker of a cluster needs: its node may not have the model."""

    plan: Plan
    model: bytes


def _infer_on(cluster: Cluster, plan: Plan, requests: Sequence[Sequence[Sample]], on_message: Report) -> float:
    with cluster.connect() as nodes:
        # One thread a request, as where there are requests enough for all cores of a machine.
        cores = min(plan.instances, nodes.least_cores)
        shipment = _Shipment(replace(plan, instances=cores, cores=cores, processes=1), plan.model.read_bytes())
        chunk = max(2 * cores, _CLUSTER_CHUNK // plan.batch)
        begun = time.perf_counter()
        with contextlib.closing(nodes.run(_ClusterWorker, shipment, requests, chunk=chunk, cores=cores)) as finished:
            for messages in finished:
                for message in _by_our_clock(messages):
                    on_message(message)
    return begun


class _ClusterWorker:
    """Has the model open for as long as a worker of a cluster runs, and answers requests."""

    def __init__(self, shipment: _Shipment) -> None:
        self._messages: list[Message] = []
        self._kept = contextlib.ExitStack()  # until the process ends
        with tempfile.TemporaryDirectory() as folder:
            self._plan = replace(shipment.plan, model=Path(folder) / shipment.plan.model.name)
            self._plan.model.write_bytes(shipment.model)
            self._backend = self._kept.enter_context(_opened(self._plan, None, self._messages.append))

    def __call__(self, requests: Sequence[Sequence[Sample]]) -> list[Message]:
        _infer_requests(self._plan, self._backend, requests, self._messages.append)
        messages, self._messages = self._messages, []
        return messages


def _by_our_clock(messages: Sequence[Message]) -> list[Message]:
    """Move the times of another machine's requests, which have just arrived, to the clock of this one."""
    late = max((message.finished for message in messages if isinstance(message, Request)), default=0.0)
    shift = time.perf_counter() - late
    return [
        replace(message, submitted=message.submitted + shift, finished=message.finished + shift)
        if isinstance(message, Request)
        else message
        for message in messages
    ]


def _prepare(spec: PreprocessSpec, image: preprocess.Pixels, raw: bool, path: Location) -> preprocess.Prepared:
    try:
        return preprocess.prepare(spec, image, raw=raw)
    except DataError as err:
        raise DataError(f"{path}: {err}") from None


def _check_outputs(outputs: Output, request: Sequence[Sample]) -> None:
    finite = np.isfinite(outputs).all(axis=1)
    if not finite.all():
        raise BackendError(f"{request[int(np.argmin(finite))].image}: the model's output holds NaN or Inf")


def _write(path: Location, output: Output) -> None:
    try:
        npz.write_result_npz(path, output)
    except OSError as err:
        raise DataError(f"{path}: cannot be written ({err.strerror}); mend that, then run again") from None


def _in_threads(
    jobs: Sequence[Callable[[], None]], threads: int, on_failure: Callable[[], None] = lambda: None
) -> None:
    """Run the jobs on a pool; the first failure, or Ctrl-C, cancels those not begun and is raised."""
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            failed = any(future.done() and future.exception() for future in futures)
        except BaseException:
            on_failure()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        if failed:
            on_failure()
            pool.shutdown(wait=False, cancel_futures=True)
    for future in futures:  # the first in the order of the jobs, whichever failed first
        if not future.cancelled():
            future.result()
