"""ONNX Runtime on the CPU."""

from __future__ import annotations

import queue
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile

from pipeline.errors import BackendError
from pipeline.runtimes.base import Batch, Placement, TensorSpec

_ERRORS = (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile)


class OnnxRuntimeBackend:
    """One session where a stream has one thread (such a session may be shared), else one a stream."""

    name = "onnxruntime"
    version = onnxruntime.__version__

    def __init__(self, model: Path, placement: Placement) -> None:
        self.placement = placement
        threads = max(1, placement.threads // placement.streams)
        sessions = [self._open(model, threads) for _ in range(1 if threads == 1 else placement.streams)]
        self._idle: queue.SimpleQueue[onnxruntime.InferenceSession] = queue.SimpleQueue()
        for stream in range(placement.streams):
            self._idle.put(sessions[stream % len(sessions)])
        given, made = sessions[0].get_inputs()[0], sessions[0].get_outputs()[0]
        self.input = TensorSpec(given.name, "float32", _shape(given.shape))
        self.output = TensorSpec(made.name, "float32", _shape(made.shape))

    @staticmethod
    def _open(model: Path, threads: int) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin while they wait take cores from decoding, and from other containers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except _ERRORS as err:
            reason = str(err).strip().partition("\n")[0]
            raise BackendError(f"{model}: ONNX Runtime {onnxruntime.__version__} does not load it ({reason})") from None

    def infer(self, batch_nchw: Batch) -> Batch:
        self.input.check(batch_nchw)
        session = self._idle.get()
        try:
            output: Batch = session.run([self.output.name], {self.input.name: np.ascontiguousarray(batch_nchw)})[0]
        finally:
            self._idle.put(session)
        return output


def _shape(axes: list[int | str | None]) -> tuple[int | None, ...]:
    return tuple(axis if isinstance(axis, int) else None for axis in axes)
