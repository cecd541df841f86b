"""The batched runner: requests in flight over one or more worker processes. Bench, eval and predict share it."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import preprocess
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import npz
from pipeline.errors import BackendError, PipelineError
from pipeline.hardware import available_cores
from pipeline.runtimes.base import Backend, Batch, Placement, Runtime, open_backend, place

# Fewer finished requests a stream than this say nothing about throughput, however long they took.
_LEAST_ROUNDS = 4


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

    image: Path
    result: Path


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
Work = Callable[[Plan, Any, Report, "threading.Event | Any"], None]


def measure(plan: Plan, limit: Limit, on_message: Report) -> float:
    """Run prepared synthetic images through the model, always `instances` requests in flight.

    Returns:
        The moment (`time.perf_counter()`) when all workers were warm and the first request was submitted.
    """
    shares = [plan.share(worker) for worker in range(plan.processes)]
    limits = [_share_limit(limit, plan.processes, worker) for worker in range(plan.processes)]
    return _run_workers(_measure_worker, shares, limits, on_message)


def _share_limit(limit: Limit, processes: int, worker: int) -> Limit:
    if limit.iterations is None:
        return limit
    return replace(limit, iterations=max(1, limit.iterations // processes + (worker < limit.iterations % processes)))


def infer_samples(plan: Plan, samples: Sequence[Sample], on_message: Report) -> float:
    """Read, preprocess, infer and write every sample whose result is not there yet; return when the work began.

    Requests are independent: while some compute, others read and preprocess.

    Raises:
        PipelineError: an image cannot be read or prepared, or the runtime fails; results written so far stay.
    """
    todo = [sample for sample in samples if not sample.result.exists()]
    requests = [todo[start : start + plan.batch] for start in range(0, len(todo), plan.batch)]
    processes = max(1, min(plan.processes, len(requests)))
    plan = replace(plan, processes=processes)
    shares = [plan.share(worker) for worker in range(processes)]
    return _run_workers(_infer_worker, shares, [requests[worker::processes] for worker in range(processes)], on_message)


@contextlib.contextmanager
def _opened(plan: Plan, report: Report) -> Iterator[Backend]:
    with open_backend(plan.runtime, plan.model, batch=plan.batch, placement=plan.placement()) as backend:
        _warm_up(backend, plan.batch)
        report(Ready(backend.name, backend.version, backend.placement))
        yield backend


def _warm_up(backend: Backend, batch: int) -> None:
    nothing = np.zeros((batch, *(axis or 1 for axis in backend.input.shape[1:])), np.float32)
    with ThreadPoolExecutor(backend.placement.streams) as pool:
        list(pool.map(backend.infer, [nothing] * backend.placement.streams))


def _measure_worker(plan: Plan, limit: Limit, report: Report, go: threading.Event) -> None:
    image = preprocess.apply(plan.spec, preprocess.synthetic(plan.spec, seed=0))
    batch = np.ascontiguousarray(np.broadcast_to(image, (plan.batch, *image.shape)))
    with _opened(plan, report) as backend:
        go.wait()
        deadline = time.perf_counter() + limit.duration_s
        least = _LEAST_ROUNDS * backend.placement.streams
        lock, started = threading.Lock(), 0

        def may_start() -> bool:
            nonlocal started
            with lock:
                if limit.iterations is not None:
                    goes_on = started < limit.iterations
                else:
                    goes_on = started < least or time.perf_counter() < deadline
                started += goes_on
                return goes_on

        def keep_one_in_flight() -> None:
            while may_start():
                submitted = time.perf_counter()
                backend.infer(batch)
                report(Request(submitted, time.perf_counter(), plan.batch))

        _in_threads([keep_one_in_flight] * plan.instances, plan.instances)


def _infer_worker(plan: Plan, requests: Sequence[Sequence[Sample]], report: Report, go: threading.Event) -> None:
    with _opened(plan, report) as backend:
        go.wait()
        # One more than the streams, so that a batch is always being prepared while others compute.
        threads = max(plan.instances, backend.placement.streams + 1)
        jobs = [lambda request=request: _infer_request(plan.spec, backend, request, report) for request in requests]
        _in_threads(jobs, threads)


def _infer_request(spec: PreprocessSpec, backend: Backend, request: Sequence[Sample], report: Report) -> None:
    begun = time.perf_counter()
    images = [npz.read_image_npz(sample.image) for sample in request]
    read = time.perf_counter()
    batch = np.stack([preprocess.apply(spec, image) for image in images])
    prepared = time.perf_counter()
    outputs = backend.infer(batch)
    inferred = time.perf_counter()
    _check_outputs(outputs, request)
    for sample, output in zip(request, outputs, strict=True):
        npz.write_result_npz(sample.result, output[None])
    written = time.perf_counter()
    report(StageTimes(read - begun, prepared - read, inferred - prepared, written - inferred))
    report(Request(begun, written, len(request)))


def _check_outputs(outputs: Batch, request: Sequence[Sample]) -> None:
    finite = np.isfinite(outputs).all(axis=1)
    if not finite.all():
        raise BackendError(f"{request[int(np.argmin(finite))].image}: the model's output holds NaN or Inf")


def _in_threads(jobs: Sequence[Callable[[], None]], threads: int) -> None:
    """Run the jobs on a pool; the first failure cancels those not begun and is raised."""
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        for future in waiting:
            future.cancel()
        for future in done:
            future.result()


def _run_workers(work: Work, shares: Sequence[Plan], tasks: Sequence[Any], on_message: Report) -> float:
    """Run `work(share, task, report, go)` for every share; one share runs here, several in processes of their own."""
    if len(shares) == 1:
        go = threading.Event()
        begun = 0.0
        lock = threading.Lock()

        def report(message: Message) -> None:
            nonlocal begun
            with lock:
                on_message(message)
                if isinstance(message, Ready):
                    begun = time.perf_counter()
                    go.set()

        work(shares[0], tasks[0], report, go)
        return begun
    return _Processes(work, shares, tasks).run(on_message)


class _Processes:
    """Worker processes with a pipe each. A worker that fails or dies ends the run; none outlives it."""

    def __init__(self, work: Work, shares: Sequence[Plan], tasks: Sequence[Any]) -> None:
        context = multiprocessing.get_context("spawn")  # fork would copy the runtimes' thread pools half-alive
        self._go = context.Event()
        self._workers: dict[Connection, multiprocessing.process.BaseProcess] = {}
        for share, task in zip(shares, tasks, strict=True):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_worker_main, args=(work, share, task, theirs, self._go), daemon=True)
            process.start()
            theirs.close()
            self._workers[ours] = process

    def run(self, on_message: Report) -> float:
        begun = 0.0
        waiting_for_ready = len(self._workers)
        open_pipes = set(self._workers)
        try:
            while open_pipes:
                for pipe in wait_for_any(list(open_pipes)):
                    assert isinstance(pipe, Connection)
                    message = self._receive(pipe)
                    if message is None:
                        open_pipes.discard(pipe)
                        continue
                    on_message(message)
                    if isinstance(message, Ready):
                        waiting_for_ready -= 1
                        if waiting_for_ready == 0:
                            begun = time.perf_counter()
                            self._go.set()
        finally:
            for process in self._workers.values():
                process.terminate()
            for process in self._workers.values():
                process.join()
        return begun

    def _receive(self, pipe: Connection) -> Message | None:
        try:
            message = pipe.recv()
        except EOFError:
            self._raise_death(pipe, "without a word")
        if isinstance(message, BaseException):
            raise message
        if message == "done":
            return None
        assert isinstance(message, Message)
        return message

    def _raise_death(self, pipe: Connection, how: str) -> None:
        process = self._workers[pipe]
        process.join()
        code = process.exitcode or 0
        cause = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        hint = "; the machine may have run out of memory: use fewer -p, -i or -b" if code == -signal.SIGKILL else ""
        raise BackendError(f"worker process {process.pid} ended {how}: {cause}{hint}")


def _worker_main(work: Work, share: Plan, task: Any, pipe: Connection, go: Any) -> None:
    """Entry point of a worker process: Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lock = threading.Lock()

    def send(message: object) -> None:
        with lock:
            pipe.send(message)

    try:
        work(share, task, send, go)
        send("done")
    except PipelineError as err:
        send(type(err)(str(err)))
    except Exception:
        send(RuntimeError(f"in a worker process:\n{traceback.format_exc()}"))
