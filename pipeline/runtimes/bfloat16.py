"""Reads the inner tensors of a float32 model as OpenVINO computes them in bfloat16, in about half the time of float32.

bfloat16 is the upper half of a float32: the same range, and 8 bits of mantissa. On CPUs that multiply it, OpenVINO
computes a ResNet in .55 of the CPU time of float32, and what it writes is half as much.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import BackendError
from pipeline.host.hardware import computes_bfloat16
from pipeline.host.threads import wait_for_end
from pipeline.runtimes.base import Placement

if TYPE_CHECKING:
    import openvino

Float32 = npt.NDArray[np.float32]
Halves = npt.NDArray[np.uint16]  # bfloat16 by its bits
Image = npt.NDArray[np.float32 | np.uint8]  # [C, H, W]

LEAST_IMAGES = 32  # that are worth opening a model for bfloat16 too
# Of the norm of a tensor, what bfloat16 may change of it. A ResNet's tensors change by .002 to .01.
_LARGEST_SHARE = 0.05


class Reader(Protocol):
    """Gives the tensors of one image by name; threads may read at once."""

    def read(self, image: Image) -> Mapping[str, Float32 | Halves]:
        """Run a prepared image [C, H, W]; the tensors are the thread's buffers, which its next call overwrites."""

    def close(self) -> None:
        """Free the model; no thread reads any more."""


class Bfloat16Reader:
    """A model compiled by OpenVINO for bfloat16, with chosen activations as outputs; threads may read at once."""

    def __init__(self, model: Path, names: Sequence[str], placement: Placement) -> None:
        """Compile a model to read the tensors `names`, its input among them or not.

        Raises:
            BackendError: OpenVINO refuses the model, or does not have a tensor by its name.
        """
        from pipeline.runtimes.ov import compile_model

        wanted = list(dict.fromkeys(names))
        compiled = compile_model(
            model, 1, placement, {"INFERENCE_PRECISION_HINT": "bf16"}, lambda network: _with_outputs(network, wanted)
        )
        self._input = compiled.inputs[0].get_any_name()
        # By position: a tensor may have several names.
        self._places = {name: place for place, name in enumerate(each for each in wanted if each != self._input)}
        self._compiled = compiled
        self._shape = tuple(compiled.inputs[0].shape)
        self._local, self._lock = threading.local(), threading.Lock()
        self._callers: set[int] = set()

    def read(self, image: Image) -> Mapping[str, Float32 | Halves]:
        """Run a prepared image [C, H, W]; return the tensors by name, uint16 [1, ...], and the input as float32.

        A tensor [1, C, H, W] is returned as [1, H, W, C], as OpenVINO computes it. The tensors are the thread's
        buffers, which its next call overwrites.
        """
        batch = image[None].astype(np.float32, copy=False)
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._first_request()
        request.infer([batch], share_inputs=True)
        tensors = {name: request.get_output_tensor(place).data.view(np.uint16) for name, place in self._places.items()}
        return {self._input: batch, **tensors}

    def _first_request(self) -> openvino.InferRequest:
        request = self._compiled.create_infer_request()
        with self._lock:  # two threads that both made the first call to a fresh model hung once
            request.infer([np.zeros(self._shape, np.float32)], share_inputs=True)
            self._callers.add(threading.get_native_id())
        return request

    def close(self) -> None:
        """Free the model, after the threads that have read ended: see `OpenVinoBackend.close`."""
        wait_for_end(self._callers)
        del self._compiled, self._local


def _with_outputs(network: openvino.Model, names: Sequence[str]) -> openvino.Model:
    """Return a network whose outputs are the tensors `names`, but for its input, in bfloat16 and with channels last."""
    import openvino
    from openvino.preprocess import PrePostProcessor

    given = network.inputs[0].get_names()
    known = {name: output for node in network.get_ordered_ops() for output in node.outputs() for name in output.names}
    missing = [name for name in names if name not in known]
    if missing:
        raise BackendError(f"OpenVINO does not have the tensor {missing[0]}")
    wanted = [known[name] for name in names if name not in given]
    made = openvino.Model(wanted, network.get_parameters(), "activations")
    steps = PrePostProcessor(made)
    for place, output in enumerate(wanted):
        steps.output(place).tensor().set_element_type(openvino.Type.bf16)
        if len(output.get_partial_shape()) == 4:
            steps.output(place).model().set_layout(openvino.Layout("NCHW"))
            steps.output(place).tensor().set_layout(openvino.Layout("NHWC"))
    return steps.build()


def is_usable() -> bool:
    """Tell whether this machine computes in bfloat16: its CPU does, and OpenVINO is installed."""
    return computes_bfloat16() and find_spec("openvino") is not None


def faster(exact: Reader, model: Path, names: Sequence[str], placement: Placement, image: Image) -> Reader:
    """Return a reader in bfloat16 whose tensors of an image are those of float32 but for rounding; else `exact`.

    Args:
        exact: reads `names` of the model in float32.
    """
    try:
        reader = Bfloat16Reader(model, names, placement)
    except BackendError:
        return exact
    expected, found = exact.read(image), reader.read(image)
    if all(_is_near(as_float32(found[name]), as_float32(expected[name])) for name in names):
        return reader
    reader.close()
    return exact


def as_float32(values: Float32 | Halves) -> Float32:
    """Return values as float32, with the axis of channels where float32 models have it: [1, C, H, W]."""
    if values.dtype == np.float32:
        return values.view(np.float32)
    widened = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.moveaxis(widened, -1, 1) if widened.ndim == 4 else widened


def _is_near(found: Float32, expected: Float32) -> bool:
    if found.shape != expected.shape:
        return False
    return bool(np.linalg.norm(found - expected) <= _LARGEST_SHARE * np.linalg.norm(expected))
