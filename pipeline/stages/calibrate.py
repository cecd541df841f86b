"""Calibrate: one pass over the calibration images, counting every activation that will be quantized.

Rounding's images come first: where weights are rounded by second order, that stage has counted them in its own pass.
CPUs that multiply bfloat16 compute in it: ranges do not depend on the last bits, and it takes half the time. On others
an int8 model does, made of what rounding found, where it can: see `int8_reading`.

What additions read of convolutions is counted on the first images alone, rounding's: see `quant.addends`.

The outcome does not depend on the calibration mode or the percentile; those only choose thresholds from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from threadpoolctl import threadpool_limits

from pipeline.artefacts import write_json
from pipeline.config.build_config import BuildConfig
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import prepared
from pipeline.data.calibration_list import FITTING_IMAGES, choose_evenly, read_calibration_list
from pipeline.data.label_check import find_doubts
from pipeline.data.labels import read_classes
from pipeline.data.sources import ImageSource
from pipeline.host.hardware import available_cores, peak_memory_mib, reset_peak_memory
from pipeline.host.threads import thread_pool
from pipeline.quant import pixels
from pipeline.quant.counting import TAIL_IMAGES, Counter, Counts, Means
from pipeline.runtimes.activations import Arithmetic, Image, Reader
from pipeline.runtimes.base import Placement
from pipeline.runtimes.readers import computes_bfloat16, open_reader, open_unordered, preferred
from pipeline.stages import int8_reading
from pipeline.stages.artefact_names import (
    CALIBRATION,
    CLASSES,
    FIGURES,
    OBSERVERS,
    OUTPUTS,
    float32_model,
    read_arithmetic,
    write_notes,
)
from pipeline.stages.settings import unkeyed
from pipeline.terminal.progress import progress_bar

_PARTIAL_OBSERVERS, _PARTIAL_OUTPUTS = "partial.npz", "partial.npy"
_SCRATCH = ".computed.onnx"
# Threads that each run one image at a time and count its activations, so that no thread waits for another. Each holds
# the activations of its image, 105 MB for wide_resnet50_2 at 256 px; further cores share the work within an image.
_MAX_WORKERS = 8
_ROUND = 32  # images between two checks whether it is time to save
_SECONDS_BETWEEN_SAVES = 30.0

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Settings:
    preprocess: PreprocessSpec
    bfloat16: bool  # allowed for the activations
    cores: int = unkeyed()  # they divide the images among them; the counts are the same


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs."""
    return Settings(preprocess=cfg.preprocess, bfloat16=computes_bfloat16(), cores=available_cores())


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the observers and the outputs; resumes from what an interrupted run left in `out`."""
    samples = read_calibration_list(inputs["calibset"] / CALIBRATION)
    images = [sample.source for sample in samples]
    arithmetic = preferred(settings.bfloat16, len(images), read_arithmetic(inputs))
    collect(settings, float32_model(inputs), images, out, arithmetic, inputs.get("round"))
    write_notes(out, find_doubts(samples, np.load(out / OUTPUTS), read_classes(inputs["calibset"] / CLASSES)))


def collect(
    settings: Settings,
    model_file: Path,
    images: Sequence[ImageSource],
    out: Path,
    arithmetic: Arithmetic | None,
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
    order = _order(len(images))

    def prepare(index: int, again: bool) -> Image:
        return prepared.load(settings.preprocess, images[index], raw=raw, again=again)

    _Pass(settings.cores, model_file, arithmetic, counter, prepare, order, out, counted).count(counts)
    counts.observers.spread_levels()
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


@dataclass(frozen=True)
class _Pass:
    """A pass over the images, as far as they are not counted yet; no model is opened where all are."""

    cores: int
    model_file: Path
    arithmetic: Arithmetic | None
    counter: Counter
    prepare: Callable[[int, bool], Image]  # of an index of the list; whether it will be wanted again
    order: Sequence[int]
    out: Path
    rounded: Path | None  # the artefact of stage `round`, where it ran

    @property
    def workers(self) -> int:
        return min(self.cores, _MAX_WORKERS)

    def count(self, counts: Counts) -> None:
        """Count the images that are not in `counts` yet."""
        arithmetic = self.arithmetic
        with progress_bar(len(self.order), "calibrate", "img", done=counts.images, span=(0, 1)) as progress:
            for end, names in self._parts():
                if counts.images < end and not self._count_in_int8(counts, names, end, arithmetic, progress.update):
                    image = self.prepare(self.order[0], True)
                    reader = self._open(names, image, arithmetic)
                    arithmetic = reader.arithmetic
                    if not counts.images:
                        self._set_tails(counts, reader)
                    self._count_in_float(counts, reader, end, progress.update)
                    reader.close()

    def _open(self, names: Sequence[str], image: Image, arithmetic: Arithmetic | None) -> Reader:
        placement = Placement(self.workers, self.cores)
        if arithmetic is Arithmetic.FLOAT32 and names != self.counter.read:  # then tensors are counted, and no more
            return open_unordered(
                self.model_file, names, placement, image, ordered={self.counter.output}, scratch=self.out / _SCRATCH
            )
        return open_reader(self.model_file, names, placement, image, arithmetic)

    def _parts(self) -> Iterator[tuple[int, Sequence[str]]]:
        """Yield the end of each part of the order, and what is read of its images."""
        first, later = self.counter.read, self.counter.read_later
        if first != later:  # else there is no need to open the model twice
            yield min(len(self.order), FITTING_IMAGES), first
        yield len(self.order), later

    def _set_tails(self, counts: Counts, reader: Reader) -> None:
        first = self.order[:FITTING_IMAGES]
        chosen = choose_evenly(len(first), TAIL_IMAGES)
        self.counter.set_tails(counts, (reader.read(self.prepare(first[index], True)) for index in chosen))

    def _count_in_float(self, counts: Counts, reader: Reader, end: int, advance: Callable[[], object]) -> None:
        fitting = set(self.order[:FITTING_IMAGES])

        def count(index: int) -> tuple[Float32, Means | None]:
            return self.counter.count(counts, reader.read(self.prepare(index, False)), fitting=index in fitting)

        self._count(counts, count, end, advance)

    def _count_in_int8(
        self,
        counts: Counts,
        names: Sequence[str],
        end: int,
        arithmetic: Arithmetic | None,
        advance: Callable[[], object],
    ) -> bool:
        """Count in the levels of an int8 model what needs no float32; return whether that can be done."""
        fitting = min(len(self.order), FITTING_IMAGES)
        if self.rounded is None or arithmetic is not Arithmetic.FLOAT32 or names != self.counter.read_later:
            return False
        if len(self.order) - fitting < int8_reading.LEAST_IMAGES:
            return False
        # Those of an interrupted run are of further images.
        first = (
            counts if counts.images == fitting else _first_counts(self.rounded, self.counter.observed, len(self.order))
        )
        if first is None:
            return False
        images = [self.prepare(index, False) for index in self.order[: int8_reading.COMPARED]]
        reading = int8_reading.open_int8(
            self.model_file,
            self.rounded,
            first,
            counts,
            images,
            threads=self.cores // self.workers,
            scratch=self.out / _SCRATCH,
        )
        del first
        if reading is None:
            return False

        def count(index: int) -> tuple[Float32, Means | None]:
            image = self.prepare(index, False)
            levels = reading.read(image)
            answer = None if levels is None else self.counter.count_levels(counts, levels)
            if answer is not None:
                return answer, None
            return self.counter.count(counts, reading.exact.read(image), fitting=False)

        self._count(counts, count, end, advance)
        reading.close()
        return True

    def _count(
        self,
        counts: Counts,
        count: Callable[[int], tuple[Float32, Means | None]],
        end: int,
        advance: Callable[[], object],
    ) -> None:
        saved = time.perf_counter()
        with (
            threadpool_limits(1, user_api="blas"),  # each thread here has its own image
            thread_pool(self.workers) as pool,
        ):
            for start in range(counts.images, end, _ROUND):
                for output, means in pool.map(count, self.order[start : min(start + _ROUND, end)]):
                    counts.add(output, means)
                    advance()
                if time.perf_counter() - saved > _SECONDS_BETWEEN_SAVES:
                    counts.save(self.out / _PARTIAL_OBSERVERS, self.out / _PARTIAL_OUTPUTS)
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
    if found is None or found.images != len(choose_evenly(images, FITTING_IMAGES)):
        return None
    found.observers.sample_for(images)
    return found
