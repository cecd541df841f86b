"""Calibrate: one float32 pass over the calibration images, counting every activation that will be quantized.

The outcome does not depend on the calibration mode or the percentile; those only choose thresholds from it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from pipeline import preprocess
from pipeline.artefacts import whole_file, write_json
from pipeline.config.build_file import BuildConfig
from pipeline.config.vdsp import PreprocessSpec, to_vdsp_dict
from pipeline.data.calibration_list import read_calibration_list
from pipeline.data.sources import ImageSource
from pipeline.errors import ArtefactError
from pipeline.hardware import available_cores, peak_memory_mib, reset_peak_memory
from pipeline.progress import progress_bar
from pipeline.quant import qdq
from pipeline.quant.observers import ObserverSet
from pipeline.stages.artefact_names import CALIBRATION, FIGURES, MODEL, OBSERVERS, OUTPUTS

_PARTIAL_OBSERVERS, _PARTIAL_OUTPUTS = "partial.npz", "partial.npy"
# Images a pass: all activations of two passes are in memory at once (105 MB an image for wide_resnet50_2 at 256 px).
_BATCH = 2
_SECONDS_BETWEEN_SAVES = 30.0

Float32 = npt.NDArray[np.float32]


def identity(cfg: BuildConfig) -> object:
    """Return what this stage's outcome depends on beside its inputs."""
    return to_vdsp_dict(cfg.preprocess)


def run(cfg: BuildConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the observers and the float32 outputs; goes on from what an interrupted run left in `out`."""
    begun = saved = time.perf_counter()
    reset_peak_memory()
    model = onnx.load(inputs["export"] / MODEL)
    images = [image.source for image in read_calibration_list(inputs["calibset"] / CALIBRATION)]
    observers, outputs = _resume(out, qdq.observed_tensors(model))
    seen = sum(map(len, outputs))
    collector = _Collector(model, list(observers.observers))
    del model
    progress = progress_bar(len(images), "calibrate", "img", done=seen)
    with ThreadPoolExecutor(available_cores()) as counting, ThreadPoolExecutor(1) as background, progress:
        counted: Future[None] | None = None
        for batch in _batches(cfg.preprocess, images[seen:]):
            activations, output = collector.run(batch)
            if counted is not None:
                counted.result()
            # Counting overlaps the next pass: NumPy counts under Python's lock, one thread at a time.
            counted = background.submit(observers.add, activations, counting)
            outputs.append(output)
            progress.update(len(batch))
            if time.perf_counter() - saved > _SECONDS_BETWEEN_SAVES:
                counted.result()
                _save(observers, outputs, out / _PARTIAL_OBSERVERS, out / _PARTIAL_OUTPUTS)
                saved = time.perf_counter()
        if counted is not None:
            counted.result()
    _save(observers, outputs, out / OBSERVERS, out / OUTPUTS)
    # With the scratch files of `whole_file` that a killed run may have left.
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
    """Write outputs first: observers say how many images they have seen, and outputs beyond that are dropped."""
    with whole_file(outputs_path) as scratch, scratch.open("wb") as stream:
        np.save(stream, np.concatenate(outputs), allow_pickle=False)
    observers.save(observers_path, images=sum(map(len, outputs)))


def _resume(out: Path, names: Sequence[str]) -> tuple[ObserverSet, list[Float32]]:
    if (out / _PARTIAL_OBSERVERS).exists():
        try:
            observers, images = ObserverSet.load(out / _PARTIAL_OBSERVERS)
            outputs = np.load(out / _PARTIAL_OUTPUTS, allow_pickle=False)
        except (ArtefactError, OSError, ValueError, EOFError):
            return ObserverSet(names), []
        if list(observers.observers) == list(names) and len(outputs) >= images:
            return observers, [outputs[:images]]
    return ObserverSet(names), []


def _batches(spec: PreprocessSpec, images: Sequence[ImageSource]) -> Iterator[Float32]:
    """Yield float32 [<= _BATCH, C, H, W]; the next batch is decoded while the caller works on this one."""

    def prepare(start: int) -> Float32:
        part = images[start : start + _BATCH]
        return np.stack([preprocess.apply(spec, preprocess.decode(image.content())) for image in part])

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(prepare, 0) if images else None
        for start in range(_BATCH, len(images) + _BATCH, _BATCH):
            assert following is not None
            batch = following.result()
            following = pool.submit(prepare, start) if start < len(images) else None
            yield batch


class _Collector:
    """The float32 model with every observed tensor as an output, written into two sets of buffers in turn.

    Letting ONNX Runtime allocate the outputs of each pass costs a fifth of the pass in page faults.
    """

    def __init__(self, model: onnx.ModelProto, names: Sequence[str]) -> None:
        self._input = model.graph.input[0].name
        self._output = model.graph.output[0].name
        self._names = [name for name in names if name != self._input]
        already = {value.name for value in model.graph.output}
        extra = [onnx.ValueInfoProto(name=name) for name in self._names if name not in already]
        # In place, and taken back: each copy of the weights counts (275 MB for wide_resnet50_2).
        model.graph.output.extend(extra)
        serialized = model.SerializeToString()
        del model.graph.output[len(already) :]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = available_cores()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
        self._buffers: dict[str, Float32] = {}
        self._spare: dict[str, Float32] = {}

    def run(self, batch: Float32) -> tuple[dict[str, Float32], Float32]:
        """Return the observed activations of a batch, valid until the call after next, and a copy of the output."""
        self._buffers, self._spare = self._spare, self._buffers
        fetched = [*self._names, self._output]
        # Another batch size has other buffers: not every activation has an image's share in its first axis.
        if not self._buffers or len(batch) != len(self._buffers[self._output]):
            made = self._session.run(fetched, {self._input: batch})
            self._buffers = dict(zip(fetched, made, strict=True))
        else:
            self._run_into_buffers(batch, fetched)
        activations = {name: self._buffers[name] for name in self._names}
        return {self._input: batch, **activations}, self._buffers[self._output].copy()

    def _run_into_buffers(self, batch: Float32, fetched: Sequence[str]) -> None:
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._input, batch)
        for name in fetched:
            buffer = self._buffers[name]
            binding.bind_output(name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
        self._session.run_with_iobinding(binding)
