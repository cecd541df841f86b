"""OpenVINO on the CPU."""

from __future__ import annotations

import queue
from pathlib import Path

import numpy as np
import openvino

from pipeline.errors import BackendError
from pipeline.runtimes.base import Batch, Placement, TensorSpec


class OpenVinoBackend:
    """One compiled model with as many streams as requests run at the same time.

    The batch is fixed when the model is compiled: with a free batch axis OpenVINO picks slower kernels. Smaller batches
    are padded and the padding is cut off again.
    """

    name = "openvino"
    version = openvino.__version__.partition("-")[0]

    def __init__(self, model: Path, batch: int, placement: Placement) -> None:
        self.placement = placement
        self._batch = batch
        compiled = _compile(model, batch, placement)
        self.input = _spec(compiled.inputs[0])
        self.output = _spec(compiled.outputs[0])
        self._idle: queue.SimpleQueue[openvino.InferRequest] = queue.SimpleQueue()
        nothing = np.zeros((batch, *(axis or 1 for axis in self.input.shape[1:])), np.float32)
        for _ in range(placement.streams):
            request = compiled.create_infer_request()
            # One at a time: two threads that both made the first call to a fresh model hung once.
            request.infer([nothing], share_inputs=True)
            self._idle.put(request)

    def infer(self, batch_nchw: Batch) -> Batch:
        self.input.check(batch_nchw)
        images = len(batch_nchw)
        if images > self._batch:
            raise BackendError(
                f"input {self.input.name!r}: {images} images, but the model was opened for {self._batch}"
            )
        if images < self._batch:
            padded = np.zeros((self._batch, *batch_nchw.shape[1:]), np.float32)
            padded[:images] = batch_nchw
            batch_nchw = padded
        request = self._idle.get()
        try:
            request.infer([np.ascontiguousarray(batch_nchw)], share_inputs=True)
            output: Batch = request.get_output_tensor(0).data[:images].copy()
        finally:
            self._idle.put(request)
        return output


def _compile(model: Path, batch: int, placement: Placement) -> openvino.CompiledModel:
    core = openvino.Core()
    try:
        network = core.read_model(str(model))
        shape = network.inputs[0].get_partial_shape()
        shape[0] = batch
        network.reshape({network.inputs[0]: shape})
        settings = {
            "NUM_STREAMS": placement.streams,
            "INFERENCE_NUM_THREADS": placement.threads,
            # Otherwise it computes float parts, and a whole float32 model, in bfloat16 on CPUs that have it.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        return core.compile_model(network, "CPU", settings)
    except RuntimeError as err:
        reason = str(err).strip().rpartition("\n")[2]
        raise BackendError(f"{model}: OpenVINO {openvino.__version__} does not load it ({reason})") from None


def _spec(port: openvino.Output) -> TensorSpec:
    """The batch axis is reported free: `infer` takes any size up to the compiled one."""
    axes = [axis.get_length() if axis.is_static else None for axis in port.get_partial_shape()]
    return TensorSpec(port.get_any_name(), "float32", (None, *axes[1:]))
