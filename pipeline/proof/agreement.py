"""Runs a model on the images it is checked with: in exact arithmetic and in every runtime, each in its own process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.data.calibration_list import FITTING_IMAGES, choose_evenly
from pipeline.data.imagenet import Sample
from pipeline.data.preprocess import Prepared
from pipeline.errors import BackendError
from pipeline.host import isolated
from pipeline.host.hardware import available_cores, saturates
from pipeline.runtimes.activations import ActivationReader
from pipeline.runtimes.base import Batch, Runtime
from pipeline.runtimes.executed import Executed, count_int8
from pipeline.runtimes.opening import installed_runtimes, open_backend, place
from pipeline.runtimes.own_placement import read_placement
from pipeline.terminal import console
from pipeline.terminal.progress import progress_bar

IMAGES = 64  # that a model is checked on
SEARCHED = 400  # that the models of a search for a goal are judged on
_BATCH = 8
# A process that takes longer hangs: exact arithmetic takes minutes for a network of any size, and no runtime takes
# many times as long. Emulated CPUs are slow for both.
_EXACT_SECONDS = 3600.0
_LEAST_SECONDS, _TIMES_EXACT = 300.0, 20.0

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Answers:
    """What a process returned: outputs, or the reason why there are none."""

    outputs: Float32 | None  # [images, classes]
    reason: str = ""  # a predicate, such as "died by SIGSEGV"
    executed: Executed | None = None  # of int8 models in runtimes
    seconds: float = 0.0


def choose(listed: int, wanted: int = IMAGES) -> list[int]:
    """Return the indices of at most so many calibration images that a model is checked on.

    Where possible, they are images that its weights were not fitted to.
    """
    fitted = set(choose_evenly(listed, FITTING_IMAGES))
    others = [index for index in range(listed) if index not in fitted] or list(range(listed))
    return [others[index] for index in choose_evenly(len(others), wanted)]


def choose_further(listed: int) -> list[int]:
    """Return the indices of calibration images that weights may be fitted to beside the usual ones.

    No model is checked on them, or judged in a search for a goal.
    """
    used = {*choose_evenly(listed, FITTING_IMAGES), *choose(listed), *choose(listed, SEARCHED)}
    return [index for index in range(listed) if index not in used]


def prepare(images: Sequence[Sample], spec: PreprocessSpec, *, raw: bool = False) -> list[Batch]:
    """Return images in batches [n, C, H, W], float32, or `raw` uint8 pixels."""
    return [
        np.stack([preprocess.load(spec, image.source.content(), raw=raw) for image in part])
        for part in (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))
    ]


def make_noise(spec: PreprocessSpec) -> list[Batch]:
    """Return one batch of synthetic images, where a build has no others."""
    return [np.stack([preprocess.apply(spec, preprocess.synthetic(spec, seed)) for seed in range(_BATCH)])]


def float32_answers(model: Path, images: Iterable[Prepared]) -> Float32:
    """Return a float32 model's outputs for prepared images, [images, classes], in ONNX Runtime as it optimizes it."""
    reader = ActivationReader(model, None, threads=available_cores())
    return np.concatenate([reader.read(image)[reader.output].copy() for image in images])


def run_exact(model: Path, batches: Sequence[Batch]) -> Answers:
    """Return a model's outputs in exact arithmetic."""
    return _attempt("exact arithmetic", _EXACT_SECONDS, batches, _infer_exact, model, batches, False)


def exact_of(runtime: Runtime, model: Path, batches: Sequence[Batch], exact: Answers) -> Answers:
    """Return in exact arithmetic what a runtime runs of a file.

    Args:
        exact: of the file as it is: returned, unless the file holds another placement of quantizers for the runtime.
    """
    if runtime is not Runtime.ONNXRUNTIME or exact.outputs is None or read_placement(model) is None:
        return exact
    what = f"exact arithmetic of {runtime.value}"
    return _attempt(what, _EXACT_SECONDS, batches, _infer_exact, model, batches, True)


def run_in(
    runtime: Runtime,
    model: Path,
    batches: Sequence[Batch],
    *,
    counts: bool,
    exact_seconds: float,
    wide_weights: bool = False,
) -> Answers:
    """Return a model's outputs in a runtime as it runs on this CPU, on all cores.

    Args:
        wide_weights: as of `open_backend`.
        counts: say what is executed in int8, too.
        exact_seconds: time that exact arithmetic took; 0 where it is not known.
    """
    bound = max(_LEAST_SECONDS, _TIMES_EXACT * exact_seconds) if exact_seconds else _EXACT_SECONDS
    what = f"check in {runtime.value}"
    return _attempt(what, bound, batches, _infer, runtime, model, batches, wide_weights, counts)


def kernel_cause(runtime: Runtime, *, wide_weights: bool = False) -> str:
    """Return the likely cause of a runtime's outputs differing from exact arithmetic on this CPU, and what to do.

    Args:
        wide_weights: as of `open_backend`.
    """
    other = next((each.value for each in installed_runtimes() if each is not runtime), None)
    use = f"use --runtime {other}" if other else "install another runtime"
    if wide_weights and saturates(runtime.value):
        return (
            "its kernels on this CPU (no VNNI, no AMX) saturate: they sum int8 products in 16 bits and cut off what is "
            f"larger; {use}, or build it again: packages now are exact on every CPU"
        )
    return f"its kernels compute something else on this CPU than the file says; {use}, and report this with the file"


def _attempt(
    what: str,
    bound: float,
    batches: Sequence[Batch],
    function: Callable[..., tuple[Float32, Executed | None]],
    *arguments: Any,
) -> Answers:
    begun = time.perf_counter()
    images = sum(map(len, batches))
    with progress_bar(images, what, "img") as progress:
        try:
            outputs, executed = isolated.call(function, *arguments, seconds=bound)
        except (isolated.LostError, BackendError) as err:
            console.causes(err)
            return Answers(None, str(err))
        progress.update(images)
    return Answers(outputs, executed=executed, seconds=time.perf_counter() - begun)


def _infer_exact(model: Path, batches: Sequence[Batch], placed: bool) -> tuple[Float32, None]:
    from pipeline.runtimes.ort import run_exact

    return run_exact(model, batches, available_cores(), placed=placed), None


def _infer(
    runtime: Runtime, model: Path, batches: Sequence[Batch], wide_weights: bool, counts: bool
) -> tuple[Float32, Executed | None]:
    placement = place(1, available_cores())
    with open_backend(runtime, model, batch=_BATCH, placement=placement, wide_weights=wide_weights) as backend:
        outputs = np.concatenate([backend.infer(batch) for batch in batches])
    return outputs, count_int8(runtime, model) if counts else None
