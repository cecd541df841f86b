"""What `accuracy.py` does with the models once they are made: runs them all on the same images, and compares."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
from common import run_once
from peer_tools import PEERS, answer_by_peer, read_interpreters
from quantizers import EITHER, Float32, float32_model

from pipeline.data import preprocess
from pipeline.data.imagenet import Sample
from pipeline.errors import BackendError
from pipeline.host import hardware, isolated
from pipeline.measure.accuracy import mcnemar_p
from pipeline.packages.package import Package
from pipeline.quant.divergence import Divergence
from pipeline.runtimes.base import Backend, Batch, Runtime
from pipeline.runtimes.opening import open_backend, place
from pipeline.runtimes.ort import run_exact
from pipeline.terminal.progress import progress_bar

BATCH, STREAMS = 22, 2
MOST_S = 600.0  # for opening and running a model once
BURST_S = 2.0  # seconds of each turn
EXACT = "exact"  # beside the runtimes: ONNX Runtime without graph optimizations, see `run_exact`
OWN = "own"  # the runtime of a tool whose models no other runs
RUNTIMES = (*(runtime.value for runtime in EITHER), OWN, EXACT)

Models = dict[str, tuple[Path, tuple[Runtime, ...]]]  # name: file, what can run it


@dataclass(frozen=True)
class Rate:
    """The throughput of a burst."""

    per_s: float  # images
    per_cpu_s: float | None = None  # images by CPU time, which other processes take none of; None: not known

    def over(self, other: Rate) -> float:
        """Return how many times as fast it is as another, by CPU time where that of both is known."""
        if self.per_cpu_s is None or other.per_cpu_s is None:
            return self.per_s / other.per_s
        return self.per_cpu_s / other.per_cpu_s


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model in one runtime, beside float32 in OpenVINO."""

    name: str
    runtime: str
    top1: float  # %
    drop: float  # % points
    right_to_wrong: int
    wrong_to_right: int
    mcnemar_p: float
    agreeing: int
    kl: float
    sqnr_db: float | None  # None: no noise at all
    images_per_s: float | None
    times_float32: float | None


def prepare_images(images: Sequence[Sample], package: Package, folder: Path) -> dict[str, Batch]:
    """Return the evaluation images [images, C, H, W] in each dtype that a model may take, mapped from files."""
    spec, shape = package.preprocess(), (len(images), *package.input_chw)
    mapped: dict[str, Batch] = {
        dtype: np.lib.format.open_memmap(folder / f"{dtype}.npy", mode="w+", dtype=dtype, shape=shape)
        for dtype in ("float32", "uint8")
    }
    with progress_bar(len(images), "evaluation images", "img") as progress:
        for index, image in enumerate(images):
            decoded = preprocess.decode(image.source.content())
            for dtype, array in mapped.items():
                array[index] = preprocess.prepare(spec, decoded, raw=dtype == "uint8")
            progress.update()
    return mapped


def answer(backend: Backend, prepared: dict[str, Batch], what: str) -> Float32:
    """Return the outputs, float32 [images, classes]."""
    images = prepared[backend.input.dtype]
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    outputs = []
    with progress_bar(len(images), what, "img") as progress, ThreadPoolExecutor(backend.placement.streams) as pool:
        for output in pool.map(backend.infer, batches):
            outputs.append(output)
            progress.update(len(output))
    return np.concatenate(outputs)


def measure_rate(backend: Backend, prepared: dict[str, Batch]) -> Rate:
    """Return the throughput of one burst: each stream's own rate, so that how they end together does not count."""

    images = prepared[backend.input.dtype]
    batch = np.ascontiguousarray(np.resize(images[:BATCH], (BATCH, *images.shape[1:])))

    def one_stream(_: int) -> tuple[float, int]:
        begun, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - begun) < BURST_S:
            backend.infer(batch)
            done += len(batch)
        return done / spent, done

    streams = backend.placement.streams
    begun = time.process_time()
    with ThreadPoolExecutor(streams) as pool:
        rates, counts = zip(*pool.map(one_stream, range(streams)), strict=True)
    return Rate(sum(rates), sum(counts) / (time.process_time() - begun))


@dataclass(frozen=True)
class Judge:
    """What all models are compared with: float32 in OpenVINO, and the classes of the images."""

    images: dict[str, Batch]
    expected: Float32
    truth: npt.NDArray[np.intp]
    reference: Backend
    rounds: int  # of the throughput

    def rates(self, backend: Backend) -> list[tuple[Rate, Rate]]:
        """Return the throughput of a model and of float32, measured in turn."""
        return [
            (measure_rate(backend, self.images), measure_rate(self.reference, self.images)) for _ in range(self.rounds)
        ]

    def compare(self, name: str, runtime: str, found: Float32, rates: Sequence[tuple[Rate, Rate]] = ()) -> Row:
        divergence = Divergence()
        divergence.add(self.expected, found)
        truth, wanted, given = self.truth, self.expected.argmax(axis=1), found.argmax(axis=1)
        lost = int(((wanted == truth) & (given != truth)).sum())
        won = int(((wanted != truth) & (given == truth)).sum())
        return Row(
            name=name,
            runtime=runtime,
            top1=100 * float((given == truth).mean()),
            drop=100 * (lost - won) / len(truth),
            right_to_wrong=lost,
            wrong_to_right=won,
            mcnemar_p=mcnemar_p(lost, won),
            agreeing=int((wanted == given).sum()),
            kl=divergence.kl,
            sqnr_db=divergence.sqnr_db if divergence.noise else None,
            images_per_s=median(rate.per_s for rate, _ in rates) if rates else None,
            times_float32=median(rate.over(float32) for rate, float32 in rates) if rates else None,
        )


def evaluate(models: Models, package: Package, samples: Sequence[Sample], args: argparse.Namespace) -> list[Row]:
    """Run every model in every runtime that can."""
    placement = place(STREAMS, hardware.available_cores())
    truth = np.array([sample.class_index for sample in samples], np.intp)
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        open_backend(Runtime.OPENVINO, float32_model(package), batch=BATCH, placement=placement) as reference,
    ):
        images = prepare_images(samples, package, Path(folder))
        judge = Judge(images, answer(reference, images, "float32 in openvino"), truth, reference, args.rounds)
        for name, (model, runtimes) in models.items():
            for runtime in runtimes:
                if runtime.value not in args.runtimes or not survives(runtime, model, images):
                    continue
                with open_backend(runtime, model, batch=BATCH, placement=placement) as backend:
                    found = answer(backend, images, f"{name} in {runtime.value}")
                    rows.append(judge.compare(name, runtime.value, found, judge.rates(backend)))
            rows += evaluate_elsewhere(name, model, judge, args)
    return rows


def evaluate_elsewhere(name: str, model: Path, judge: Judge, args: argparse.Namespace) -> list[Row]:
    """Run a model in its tool's own runtime, or in exact arithmetic."""
    if name in PEERS and PEERS[name].runtime:
        normalised = judge.images["float32"]
        if OWN not in args.runtimes:
            return []
        try:
            found, rate = answer_by_peer(name, model, normalised, read_interpreters(args.peer))
        except BackendError as err:
            print(f"{name} is left out: {err}", file=sys.stderr)
            return []
        float32 = [measure_rate(judge.reference, judge.images) for _ in range(judge.rounds)]
        return [judge.compare(name, PEERS[name].runtime, found, [(Rate(rate), each) for each in float32])]
    if EXACT not in args.runtimes or model.suffix != ".onnx":
        return []
    with open_backend(Runtime.ONNXRUNTIME, model, batch=BATCH, placement=place(1, 1)) as backend:
        batch = judge.images[backend.input.dtype]
    batches = [batch[start : start + BATCH] for start in range(0, len(batch), BATCH)]
    return [judge.compare(name, EXACT, run_exact(model, batches, hardware.available_cores()))]


def survives(runtime: Runtime, model: Path, images: dict[str, Batch]) -> bool:
    """Tell whether a runtime runs a model, tried in a process of its own: some end theirs."""
    try:
        some = {kind: batch[:BATCH].copy() for kind, batch in images.items()}
        isolated.call(run_once, runtime, model, some, STREAMS, seconds=MOST_S)
    except (isolated.LostError, BackendError) as err:
        print(f"{model.name} in {runtime.value} is left out: it {err}", file=sys.stderr)
        return False
    return True
