"""Reads the inner tensors of a float32 model as OpenVINO computes them in bfloat16, in about half the time of float32.

bfloat16 is the upper half of a float32: the same range, and 8 bits of mantissa. On CPUs that multiply it, OpenVINO
computes a ResNet in .55 of the CPU time of float32, and what it writes is half as much.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import BackendError
from pipeline.host.threads import wait_for_end
from pipeline.runtimes.activations import Arithmetic, Float32, Halves, Image
from pipeline.runtimes.base import Placement

if TYPE_CHECKING:
    import openvino

_CONVOLUTIONS = frozenset({"Convolution", "GroupConvolution"})


class Bfloat16Reader:
    """A model compiled by OpenVINO for bfloat16, with chosen activations as outputs; threads may read at once."""

    arithmetic = Arithmetic.BFLOAT16

    def __init__(self, model: Path, names: Sequence[str], placement: Placement) -> None:
        """Compile a model to read the tensors `names`, its input among them or not.

        Raises:
            BackendError: OpenVINO refuses the model, does not have a tensor by its name, or has one with two layouts.
        """
        from pipeline.runtimes.ov import compile_model

        wanted = list(dict.fromkeys(names))
        self.unmoved: frozenset[str] = frozenset()  # tensors of four axes, of which the last is that of channels anyway

        def change(network: openvino.Model) -> openvino.Model:
            outputs = _find(network, wanted)
            self.unmoved = frozenset(name for name, output in outputs.items() if _has_rows(name, output))
            return _with_outputs(network, outputs, self.unmoved)

        compiled = compile_model(model, 1, placement, {"INFERENCE_PRECISION_HINT": "bf16"}, change)
        self._input = compiled.inputs[0].get_any_name()
        self._names = [name for name in wanted if name != self._input]  # in the order of the outputs
        self._compiled = compiled
        self._shape = tuple(compiled.inputs[0].shape)
        self._local, self._lock = threading.local(), threading.Lock()
        self._callers: set[int] = set()

    def read(self, image: Image) -> Mapping[str, Float32 | Halves]:
        """Run a prepared image [C, H, W]; return the tensors by name, uint16 [1, ...], and the input as float32.

        A tensor [1, C, H, W] is returned as [1, H, W, C], as OpenVINO computes it; of those that products with matrices
        read (`unmoved`), the last axis is that of channels, and they are returned as they are. The tensors are the
        thread's buffers, which its next call overwrites.
        """
        request: _Request | None = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._first_request()
        request.batch[0] = image
        request.infer.infer()
        return request.tensors

    def _first_request(self) -> _Request:
        import openvino

        infer = self._compiled.create_infer_request()
        batch = np.zeros(self._shape, np.float32)
        infer.set_input_tensor(openvino.Tensor(batch, shared_memory=True))
        tensors: dict[str, Float32 | Halves] = {self._input: batch}
        for name, output in zip(self._names, self._compiled.outputs, strict=True):
            buffer = np.empty(tuple(output.shape), np.uint16)
            infer.set_tensor(output, openvino.Tensor(buffer, output.shape, openvino.Type.bf16))
            tensors[name] = buffer
        with self._lock:  # two threads that both made the first call to a fresh model hung once
            infer.infer()
            self._callers.add(threading.get_native_id())
        return _Request(infer, batch, tensors)

    def close(self) -> None:
        """Free the model, after the threads that have read ended: see `OpenVinoBackend.close`."""
        wait_for_end(self._callers)
        del self._compiled, self._local


@dataclass(frozen=True)
class _Request:
    """What a thread computes with, and the buffers of its input and outputs."""

    infer: openvino.InferRequest
    batch: Float32
    tensors: Mapping[str, Float32 | Halves]


def _find(network: openvino.Model, names: Sequence[str]) -> dict[str, openvino.Output]:
    """Return the outputs of operators that are the tensors `names`, but for the network's input."""
    given = network.inputs[0].get_names()
    known = {name: output for node in network.get_ordered_ops() for output in node.outputs() for name in output.names}
    missing = [name for name in names if name not in known]
    if missing:
        raise BackendError(f"OpenVINO does not have the tensor {missing[0]}")
    return {name: known[name] for name in names if name not in given}


def _has_rows(name: str, output: openvino.Output) -> bool:
    """Tell whether a tensor has four axes, the last of them that of channels: a product with a matrix reads it.

    Raises:
        BackendError: a convolution, whose channels are axis 1, reads it too.
    """
    if len(output.get_partial_shape()) != 4:
        return False
    readers = {place.get_node().get_type_name() for place in output.get_target_inputs()}
    if "MatMul" in readers and readers & _CONVOLUTIONS:
        raise BackendError(f"a product with a matrix and a convolution read the tensor {name}")
    return "MatMul" in readers


def _with_outputs(
    network: openvino.Model, wanted: Mapping[str, openvino.Output], unmoved: Collection[str]
) -> openvino.Model:
    """Return a network with these outputs, in bfloat16 and, but for those of `unmoved`, with channels last."""
    import openvino
    from openvino.preprocess import PrePostProcessor

    made = openvino.Model(list(wanted.values()), network.get_parameters(), "activations")
    steps = PrePostProcessor(made)
    for place, (name, output) in enumerate(wanted.items()):
        steps.output(place).tensor().set_element_type(openvino.Type.bf16)
        if len(output.get_partial_shape()) == 4 and name not in unmoved:
            steps.output(place).model().set_layout(openvino.Layout("NCHW"))
            steps.output(place).tensor().set_layout(openvino.Layout("NHWC"))
    return steps.build()
