"""The batched runner: requests in flight over one or more worker processes of this machine."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import npz, preprocess
from pipeline.data.storage import REQUESTS_AT_ONCE, Location, Url, names_in
from pipeline.errors import DataError
from pipeline.host.processes import Barrier, run_sharing, run_workers
from pipeline.run.answer import answer
from pipeline.run.plan import Entry, Limit, Plan, Ready, Report, Request, StageTimes
from pipeline.runtimes.base import Backend, Output
from pipeline.runtimes.opening import open_backend, survives_fork
from pipeline.terminal import console

# Fewer finished requests for each stream than this do not measure throughput, however long they took.
_LEAST_ROUNDS = 4
# Requests in flight for each stream when images are read from disk: each holds its images in memory, and a stream needs
# one that computes, one that is ready, and some that are being read.
_MOST_IN_FLIGHT = 4


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


def list_unanswered(entries: Sequence[Entry], batch: int) -> list[Sequence[Entry]]:
    """Return the requests, `batch` entries each, that lack a result.

    A request is done again as a whole: which images share a batch may change the last bits of a float32 answer, and a
    run that was interrupted must end with the results of one that was not.
    """
    requests = [entries[start : start + batch] for start in range(0, len(entries), batch)]
    present = {folder: names_in(folder) for folder in {entry.result.parent for entry in entries}}
    return [request for request in requests if not all(e.result.name in present[e.result.parent] for e in request)]


def infer_requests(plan: Plan, requests: Sequence[Sequence[Entry]], on_message: Report) -> float:
    """Read, preprocess, infer and write the entries of every request.

    Requests are independent: while some compute, others read and preprocess.

    Returns:
        The moment (`time.perf_counter()`) when all workers were warm and the work began.

    Raises:
        PipelineError: an image cannot be read or prepared, or the runtime fails; results written so far stay.
    """
    if not requests:
        return time.perf_counter()
    processes = min(plan.processes, len(requests))
    plan = replace(plan, processes=processes)
    tasks = [(plan.share(worker), requests[worker::processes]) for worker in range(processes)]
    return _run(_infer_worker, tasks, on_message)


def _run(work: Callable[..., None], tasks: Sequence[tuple[Plan, Any]], on_message: Report) -> float:
    """Run one worker for each task; several share one model in memory where the runtime allows it."""
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
def open_and_report(plan: Plan, shared: Backend | None, report: Report) -> Iterator[Backend]:
    """Yield the model, which may be open already, and say so."""
    with contextlib.nullcontext(shared) if shared else _open(plan) as backend:
        report(Ready(backend.name, backend.version, backend.placement))
        yield backend


def _warm_up(backend: Backend, batch: int) -> None:
    nothing = np.zeros((batch, *(axis or 1 for axis in backend.input.shape[1:])), backend.input.dtype)
    streams = backend.placement.streams
    if streams == 1:  # in this thread: a thread that ends just before a fork may hold a lock of OpenVINO's
        backend.infer(nothing)
        return
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(backend.infer, [nothing] * streams))


def _measure_worker(task: tuple[Plan, Limit], report: Report, barrier: Barrier, shared: Backend | None = None) -> None:
    plan, limit = task
    synthetic = preprocess.synthetic(plan.spec, seed=0)
    with open_and_report(plan, shared, report) as backend:
        image = preprocess.prepare(plan.spec, synthetic, raw=backend.input.takes_pixels)
        batch = np.ascontiguousarray(np.broadcast_to(image, (plan.batch, *image.shape)))
        streams = backend.placement.streams
        barrier()
        begun = time.perf_counter()
        starts = _Starts(limit, begun, least=_LEAST_ROUNDS * streams)
        # First come, first served. Threads that compete for the streams would not queue: the one that has just finished
        # would get its stream again at once, and the others would wait for seconds.
        in_flight = deque([begun] * max(plan.instances, streams))

        def keep_a_stream_busy() -> None:
            while starts.one_more():
                submitted = in_flight.popleft()
                backend.infer(batch)
                finished = time.perf_counter()
                in_flight.append(finished)  # the next request takes its place
                report(Request(submitted, finished, plan.batch))

        _run_jobs([keep_a_stream_busy] * streams, streams, on_failure=starts.stop)


class _Starts:
    """Decides whether one more request may start computing."""

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
    task: tuple[Plan, Sequence[Sequence[Entry]]], report: Report, barrier: Barrier, shared: Backend | None = None
) -> None:
    plan, requests = task
    with open_and_report(plan, shared, report) as backend:
        barrier()
        infer_in_threads(plan, backend, requests, report)


def infer_in_threads(plan: Plan, backend: Backend, requests: Sequence[Sequence[Entry]], report: Report) -> None:
    """Do all requests with a loaded model, in threads of this process."""
    streams = backend.placement.streams
    # One more than the streams, so that a batch is always being prepared while others compute.
    threads = max(streams + 1, min(plan.instances, _MOST_IN_FLIGHT * streams))
    if any(isinstance(place, Url) for request in requests for e in request for place in (e.image, e.result)):
        threads = REQUESTS_AT_ONCE * streams
    jobs = [lambda request=request: _infer_request(plan.spec, backend, request, report) for request in requests]
    _run_jobs(jobs, threads)


def _infer_request(spec: PreprocessSpec, backend: Backend, request: Sequence[Entry], report: Report) -> None:
    begun = time.perf_counter()
    answers = answer(backend, spec, [(str(entry.image), entry.image) for entry in request], npz.read_image_npz)
    assert answers is not None  # nothing is skipped
    inferred = time.perf_counter()
    for entry, output in zip(request, answers.outputs, strict=True):
        _write(entry.result, output[None])
    written = time.perf_counter()
    report(StageTimes(answers.read, answers.preprocess, answers.infer, written - inferred))
    report(Request(begun, written, len(request)))


def _write(path: Location, output: Output) -> None:
    try:
        npz.write_result_npz(path, output)
    except OSError as err:
        raise DataError(f"{path}: cannot be written ({err.strerror}); fix that, then run again") from None


def _run_jobs(jobs: Sequence[Callable[[], None]], threads: int, on_failure: Callable[[], None] = lambda: None) -> None:
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
