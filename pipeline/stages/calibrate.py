"""Calibrate: one float32 pass over the calibration images, counting every activation that will be quantized.

Rounding's images come first: where weights are rounded by second order, that stage has counted them in its own pass.

The outcome does not depend on the calibration mode or the percentile; those only choose thresholds from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from threadpoolctl import threadpool_limits

from pipeline.artefacts import write_json
from pipeline.config.build_file import BuildConfig
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.data.calibration_list import FITTING_IMAGES, choose_evenly, read_calibration_list
from pipeline.data.label_check import find_doubts
from pipeline.data.labels import read_classes
from pipeline.data.sources import ImageSource
from pipeline.errors import DataError
from pipeline.host.hardware import available_cores, peak_memory_mib, reset_peak_memory
from pipeline.host.threads import thread_pool
from pipeline.onnx_models import classifier
from pipeline.quant import pixels
from pipeline.quant.counting import TAIL_IMAGES, Counter, Counts, Means
from pipeline.runtimes.activations import ActivationReader
from pipeline.stages.artefact_names import (
    CALIBRATION,
    CLASSES,
    FIGURES,
    MODEL,
    OBSERVERS,
    OUTPUTS,
    float32_model,
    write_notes,
)
from pipeline.stages.settings import unkeyed
from pipeline.terminal.progress import progress_bar

_PARTIAL_OBSERVERS, _PARTIAL_OUTPUTS = "partial.npz", "partial.npy"
# Threads that each run one image at a time and count its activations, so that no thread waits for another. Each holds
# the activations of its image, 105 MB for wide_resnet50_2 at 256 px; further cores share the work within an image.
_MAX_WORKERS = 8
_CHECKED_IMAGES = 4
# Relative to the outputs' norm. Sums in another order differ by 1e-5, and by more where the network itself rounds.
_LARGEST_SHARE = 3e-2
_ROUND = 32  # images between two checks whether it is time to save
_SECONDS_BETWEEN_SAVES = 30.0

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Settings:
    preprocess: PreprocessSpec
    cores: int = unkeyed()  # they divide the images among them; the counts are the same


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs."""
    return Settings(preprocess=cfg.preprocess, cores=available_cores())


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the observers and the float32 outputs; resumes from what an interrupted run left in `out`."""
    samples = read_calibration_list(inputs["calibset"] / CALIBRATION)
    images = [sample.source for sample in samples]
    counted = inputs.get("round")
    collect(float32_model(inputs), settings.preprocess, images, out, cores=settings.cores, counted=counted)
    outputs = np.load(out / OUTPUTS)
    if float32_model(inputs).parent != inputs["export"]:
        _check_against_export(inputs["export"] / MODEL, settings.preprocess, images, outputs)
    write_notes(out, find_doubts(samples, outputs, read_classes(inputs["calibset"] / CLASSES)))


def _check_against_export(model: Path, spec: PreprocessSpec, images: Sequence[ImageSource], outputs: Float32) -> None:
    """Raise DataError unless the model that was calibrated computes what the exported one does.

    Later stages are compared with the calibrated model only, so an error of the stages between the two, or a stale
    artefact, would go unnoticed.
    """
    checked = choose_evenly(len(images), _CHECKED_IMAGES)
    batch = np.stack([preprocess.load(spec, images[index].content(), raw=False) for index in checked])
    expected = classifier.run(onnx.load(model), batch.astype(np.float32, copy=False))
    largest = float(np.abs(expected).max())
    error = outputs[list(checked)] - expected
    difference = float(np.abs(error).max())
    if not np.linalg.norm(error) <= _LARGEST_SHARE * np.linalg.norm(expected):
        raise DataError(
            f"{model}: the model made of it for int8 differs by {difference:.2g} on outputs of up to {largest:.2g}, "
            "which it must not; delete .cache/ in the workspace; or --set backend.quantize.pixel_input=false "
            "and --set backend.quantize.equalization=false, and report this"
        )


def collect(
    model_file: Path,
    spec: PreprocessSpec,
    images: Sequence[ImageSource],
    out: Path,
    *,
    cores: int,
    counted: Path | None = None,
) -> None:
    """Do what `run` does, with any float32 model and any images.

    Args:
        counted: the artefact of a stage that has counted the first of `_order` already.

    Raises:
        DataError: an image cannot be read, or an activation holds NaN or Inf; it is named.
    """
    begun = time.perf_counter()
    reset_peak_memory()
    model = onnx.load(model_file)
    counter, raw = Counter(model), pixels.are_input_of(model)
    del model  # before a session holds its weights too
    found = Counts.load(out / _PARTIAL_OBSERVERS, out / _PARTIAL_OUTPUTS, counter.observed, len(images))
    resumed_at = 0 if found is None else found.images
    counts = found or _first_counts(counted, counter.observed, len(images)) or Counts(counter.observed, len(images))
    workers = min(cores, _MAX_WORKERS)
    # Where all was counted before, no session is opened.
    missing = counts.images < len(images)
    reader = ActivationReader(model_file, counter.read, threads=cores // workers) if missing else None

    def read(index: int) -> Mapping[str, Float32]:
        assert reader is not None
        return reader.read(preprocess.load(spec, images[index].content(), raw=raw))

    order = _order(len(images))
    _count(counter, counts, read, order, workers, out)
    outputs = np.concatenate(counts.outputs)
    counts.outputs = [outputs[np.argsort(order)]]  # in the order of the list
    counts.save(out / OBSERVERS, out / OUTPUTS)
    # Including scratch files of `whole_file` from a killed run.
    for leftover in [out / _PARTIAL_OBSERVERS, out / _PARTIAL_OUTPUTS, *out.glob(".*")]:
        leftover.unlink(missing_ok=True)
    figures = {
        "images": len(images),
        "tensors": len(counter.observed),
        "resumed_at": resumed_at,
        "seconds": round(time.perf_counter() - begun, 1),
        "peak_memory_mib": round(peak_memory_mib()),
    }
    write_json(out / FIGURES, figures)


def _count(
    counter: Counter,
    counts: Counts,
    read: Callable[[int], Mapping[str, Float32]],
    order: Sequence[int],
    workers: int,
    out: Path,
) -> None:
    """Count the images of `order` that are not in `counts` yet, saving on the way.

    Args:
        read: returns the activations of the image of an index.
    """

    def count(index: int) -> tuple[Float32, Means]:
        return counter.count(counts, read(index))

    saved, seen = time.perf_counter(), counts.images
    if not seen:
        first = order[:FITTING_IMAGES]
        counter.set_tails(counts, (read(first[index]) for index in choose_evenly(len(first), TAIL_IMAGES)))
    with (
        threadpool_limits(1, user_api="blas"),  # each thread here has its own image
        thread_pool(workers) as pool,
        progress_bar(len(order), "calibrate", "img", done=seen, span=(0, 1)) as progress,
    ):
        for start in range(seen, len(order), _ROUND):
            for output, means in pool.map(count, order[start : start + _ROUND]):
                counts.add(output, means)
                progress.update()
            if time.perf_counter() - saved > _SECONDS_BETWEEN_SAVES:
                counts.save(out / _PARTIAL_OBSERVERS, out / _PARTIAL_OUTPUTS)
                saved = time.perf_counter()


def _order(images: int) -> list[int]:
    """Return the indices of the list in the order in which they are counted: those first that rounding counts."""
    first = choose_evenly(images, FITTING_IMAGES)
    return [*first, *(index for index in range(images) if index not in first)]


def _first_counts(counted: Path | None, names: Sequence[str], images: int) -> Counts | None:
    """Return what another stage has counted; None where there is none, or it is of other images."""
    if counted is None:
        return None
    found = Counts.load(counted / OBSERVERS, counted / OUTPUTS, names, images)
    return found if found is not None and found.images == len(choose_evenly(images, FITTING_IMAGES)) else None
