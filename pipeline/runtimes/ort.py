"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from pipeline.errors import BackendError, first_line
from pipeline.host.hardware import saturates
from pipeline.runtimes.base import Batch, Engines, Output, Placement, TensorSpec, parts_of

onnxruntime.set_default_logger_severity(4)  # some warnings ignore the setting of a session
_DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}
# They have no common base class but Exception.
_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


class OnnxRuntimeBackend:
    """One session for all streams of one thread (such a session can be shared), else a session for each stream."""

    name = "onnxruntime"
    version = onnxruntime.__version__

    def __init__(self, model: Path, batch: int, placement: Placement, *, wide_weights: bool = False) -> None:
        """Open the model; `wide_weights` is explained at `open_backend`."""
        self.placement = placement
        self._batch = batch
        threads = max(1, placement.threads // placement.streams)
        source = _source(model)
        options = _options(threads, exact=_needs_exact(wide_weights))
        sessions = [_open(model, source, options) for _ in range(1 if threads == 1 else placement.streams)]
        self._sessions = Engines([sessions[stream % len(sessions)] for stream in range(placement.streams)])
        given, made = sessions[0].get_inputs()[0], sessions[0].get_outputs()[0]
        self._loops = given.shape[0] == 1
        self.input = TensorSpec(given.name, _DTYPES.get(given.type, given.type), _shape(given.shape))
        self.output = TensorSpec(made.name, "float32", _shape(made.shape))

    def infer(self, batch_nchw: Batch) -> Output:
        self.input.check(batch_nchw, self._batch)
        name, out = self.input.name, self.output.name
        parts = parts_of(np.ascontiguousarray(batch_nchw), 1 if self._loops else len(batch_nchw))
        with self._sessions.borrow() as session:
            try:
                outputs: list[Output] = [session.run([out], {name: part})[0] for part in parts]
            except _ERRORS as err:
                raise BackendError(f"ONNX Runtime failed on {len(batch_nchw)} images ({first_line(err)})") from None
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def close(self) -> None:
        self._sessions.close()


def _source(model: Path) -> str | bytes:
    """Return what a session is made of: the file, or its content in a form that is faster here."""
    try:
        from pipeline.runtimes.faster_form import faster_form
    except ImportError:  # a machine that only runs packages may lack onnx: it runs the file as it is
        return str(model)
    return faster_form(model) or str(model)  # for a file that is not a model, the session raises the error


def open_profiled(
    model: Path, threads: int, prefix: Path, *, wide_weights: bool = False
) -> onnxruntime.InferenceSession:
    """Open a session that writes its profile to a file, whose name `end_profiling` returns.

    Raises:
        BackendError: ONNX Runtime refuses the model.
    """
    options = _options(threads, exact=_needs_exact(wide_weights))
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    return _open(model, _source(model), options)


def run_exact(model: Path, batches: Sequence[Batch], threads: int, *, placed: bool = False) -> Output:
    """Return a model's outputs, float32 [images, classes], in exact arithmetic, independent of this CPU's int8 kernels.

    Without graph optimizations each node of the file is computed separately: between quantizers in float32, on values
    of their grids, whose sums of products are exact up to 24 bits, and within 1e-7 beyond.

    Args:
        placed: of the file as ONNX Runtime runs it, where that holds another placement of quantizers for it.

    Raises:
        BackendError: ONNX Runtime refuses the model, or fails.
    """
    options = _options(threads)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = _open(model, (_placed(model) if placed else None) or str(model), options)
    given = session.get_inputs()[0]
    parts = [part for batch in batches for part in parts_of(batch, 1 if given.shape[0] == 1 else len(batch))]
    try:
        return np.concatenate([session.run(None, {given.name: part})[0] for part in parts])
    except _ERRORS as err:
        raise BackendError(f"{model}: ONNX Runtime fails without optimizations ({first_line(err)})") from None


def save_onnx(model: Path, path: Path) -> None:
    """Write a model as ONNX for programs that run it in ONNX Runtime: with its placement of quantizers there."""
    path.write_bytes(_placed(model) or model.read_bytes())


def save_ort(model: Path, path: Path) -> None:
    """Write a model in ORT format, which ONNX Runtime's small builds load; with the optimizations that suit every CPU.

    Quantizers are placed as ONNX Runtime has them.

    Raises:
        BackendError: ONNX Runtime refuses the model.
    """
    options = _options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    _open(model, _placed(model) or str(model), options)


def _placed(model: Path) -> bytes | None:
    """Return a model's content where it holds another placement of quantizers for ONNX Runtime; None: it holds none."""
    try:
        from pipeline.runtimes.own_placement import read_placement
    except ImportError:  # as in `_source`
        return None
    return read_placement(model)


def _needs_exact(wide_weights: bool) -> bool:
    return wide_weights and saturates(OnnxRuntimeBackend.name)


def _options(threads: int, *, exact: bool = False) -> onnxruntime.SessionOptions:
    """Return the options of a session of so many threads.

    Args:
        exact: where x86 kernels add products in 16 bits, store int8 weights beyond 64 as uint8, for which they do not.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised anyway
    # Threads that spin while they wait take cores from decoding and from other containers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _open(model: Path, source: str | bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    # In another form than the file's: constant weights would be quantized again where a layer's input is quantized.
    off = ["WeightBiasQuantization"] if isinstance(source, bytes) else []
    try:
        return onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], disabled_optimizers=off
        )
    except _ERRORS as err:
        raise BackendError(
            f"{model}: ONNX Runtime {onnxruntime.__version__} does not load it ({first_line(err)})"
        ) from None


def _shape(axes: list[int | str | None]) -> tuple[int | None, ...]:
    """The batch axis is reported free: `infer` takes any size, also of a model that takes one image at a time."""
    return (None, *(axis if isinstance(axis, int) else None for axis in axes[1:]))
