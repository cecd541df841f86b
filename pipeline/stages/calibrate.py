"""Calibrate: one float32 pass over the calibration images, counting every activation that will be quantized.

The outcome does not depend on the calibration mode or the percentile; those only choose thresholds from it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from pipeline.artefacts import whole_file, write_json
from pipeline.config.build_file import BuildConfig
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.data.calibration_list import choose_evenly, read_calibration_list
from pipeline.data.label_check import find_doubts
from pipeline.data.labels import read_classes
from pipeline.data.preprocess import Prepared
from pipeline.data.sources import ImageSource
from pipeline.errors import ArtefactError, DataError
from pipeline.host.blas import blas_threads
from pipeline.host.hardware import available_cores, peak_memory_mib, reset_peak_memory
from pipeline.host.threads import thread_pool
from pipeline.onnx_models import classifier
from pipeline.quant import pixels, placement
from pipeline.quant.observers import ObserverSet
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
_TAIL_IMAGES = 4  # images that determine which values are extremes; see ObserverSet.set_tails
_CHECKED_IMAGES = 4
# Relative to the outputs' norm. Sums in another order differ by 1e-5, and by more where the network itself rounds.
_LARGEST_SHARE = 3e-2
_ROUND = 32  # images between two checks whether it is time to save
_SECONDS_BETWEEN_SAVES = 30.0

Float32 = npt.NDArray[np.float32]
Means = dict[str, npt.NDArray[np.float64]]  # of each channel, by tensor name


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
    collect(float32_model(inputs), settings.preprocess, images, out, cores=settings.cores)
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


def collect(model_file: Path, spec: PreprocessSpec, images: Sequence[ImageSource], out: Path, *, cores: int) -> None:
    """Do what `run` does, with any float32 model and any images.

    Raises:
        DataError: an image cannot be read, or an activation holds NaN or Inf; it is named.
    """
    begun = saved = time.perf_counter()
    reset_peak_memory()
    model = onnx.load(model_file)
    observers, outputs = _resume(out, placement.observed_tensors(model), len(images))
    seen = sum(map(len, outputs))
    raw = pixels.are_input_of(model)
    del model  # before a session holds its weights too
    collector = _Collector(model_file, observers, cores)

    def observe(image: ImageSource) -> tuple[Float32, Means]:
        return collector.observe(preprocess.load(spec, image.content(), raw=raw))

    if not seen:
        for index in choose_evenly(len(images), _TAIL_IMAGES):
            observe(images[index])
        observers.set_tails()
    with (
        blas_threads(1),  # each thread here has its own image
        thread_pool(collector.workers) as pool,
        progress_bar(len(images), "calibrate", "img", done=seen, span=(0, 1)) as progress,
    ):
        for start in range(seen, len(images), _ROUND):
            for output, means in pool.map(observe, images[start : start + _ROUND]):
                outputs.append(output)
                observers.add_means(means)
                progress.update()
            if time.perf_counter() - saved > _SECONDS_BETWEEN_SAVES:
                _save(observers, outputs, out / _PARTIAL_OBSERVERS, out / _PARTIAL_OUTPUTS)
                saved = time.perf_counter()
    _save(observers, outputs, out / OBSERVERS, out / OUTPUTS)
    # Including scratch files of `whole_file` from a killed run.
    for leftover in [out / _PARTIAL_OBSERVERS, out / _PARTIAL_OUTPUTS, *out.glob(".*")]:
        leftover.unlink(missing_ok=True)
    figures = {
        "images": len(images),
        "tensors": len(observers.observers),
        "resumed_at": seen,
        "seconds": round(time.perf_counter() - begun, 1),
        "peak_memory_mib": round(peak_memory_mib()),
    }
    write_json(out / FIGURES, figures)


def _save(observers: ObserverSet, outputs: Sequence[Float32], observers_path: Path, outputs_path: Path) -> None:
    """Write outputs first: observers hold the number of images they have seen, and outputs beyond it are dropped."""
    with whole_file(outputs_path) as scratch, scratch.open("wb") as stream:
        np.save(stream, np.concatenate(outputs), allow_pickle=False)
    observers.save(observers_path, images=sum(map(len, outputs)))


def _resume(out: Path, names: Sequence[str], listed: int) -> tuple[ObserverSet, list[Float32]]:
    if (out / _PARTIAL_OBSERVERS).exists():
        try:
            observers, images = ObserverSet.load(out / _PARTIAL_OBSERVERS)
            outputs = np.load(out / _PARTIAL_OUTPUTS, allow_pickle=False)
        except (ArtefactError, OSError, ValueError, EOFError):
            return ObserverSet(names, listed), []
        if list(observers.observers) == list(names) and len(outputs) >= images:
            return observers, [outputs[:images]]
    return ObserverSet(names, listed), []


class _Collector:
    """The float32 model, every observed tensor of it and every layer's input."""

    def __init__(self, model: onnx.ModelProto | Path, observers: ObserverSet, cores: int) -> None:
        loaded = onnx.load(model) if isinstance(model, Path) else model
        self.workers = min(cores, _MAX_WORKERS)
        self._observers = observers
        self._output = loaded.graph.output[0].name
        self._averaged = placement.layer_inputs(loaded)
        self._never_negative = placement.never_negative(loaded)
        del loaded
        wanted = [*observers.observers, *self._averaged, self._output]
        self._reader = ActivationReader(model, wanted, threads=cores // self.workers)

    def observe(self, image: Prepared) -> tuple[Float32, Means]:
        """Run and count a prepared image [C, H, W]; return a copy of the output and the layers' mean inputs.

        Raises:
            DataError: an activation holds NaN or Inf; it is named.
        """
        values = self._reader.read(image)
        self._observers.add({name: values[name] for name in self._observers.observers}, self._never_negative)
        means = {name: _channel_means(values[name], axis) for name, axis in self._averaged.items()}
        return values[self._output].copy(), means


def _channel_means(values: Float32, axis: int) -> npt.NDArray[np.float64]:
    """Return float64 [C], the mean of each channel of float32 [1, C, ...], or [1, ..., C] where the axis is the last.

    Summed in float32 by BLAS, in many partial sums: exact to six digits; float64 takes ten times as long.
    """
    if axis == 1:
        rows = values.reshape(values.shape[1], -1)
        sums = rows @ np.ones(rows.shape[1], np.float32)
    else:
        rows = values.reshape(-1, values.shape[-1]).T
        sums = np.ones(rows.shape[1], np.float32) @ rows.T
    return sums.astype(np.float64) / rows.shape[1]
