"""OpenVINO on the CPU."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from pipeline.errors import BackendError, last_line
from pipeline.host.hardware import MAX_ISA, available_cores, is_arm
from pipeline.host.threads import wait_for_end
from pipeline.runtimes.base import Batch, Engines, Output, Placement, TensorSpec, parts_of

# With this package OpenVINO reports its import to Google Analytics, from a process that it forks beside our threads,
# and writes files to the home folder. Where the package cannot be imported, it uses a stub.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
if os.environ.get(MAX_ISA):  # read when the first model is compiled
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", os.environ[MAX_ISA])

import openvino  # noqa: E402

from pipeline.runtimes.float_arithmetic import computes_in_bfloat16  # noqa: E402
from pipeline.runtimes.joined_levels import copy_joined_levels  # noqa: E402

# On ARM its passes for int8 produce operations that no kernel supports: "Convolution input precision should be single"
# where a layer reads uint8 pixels; where an input is signed, "object is not initialized" on CPUs without float16, and a
# float16 reference kernel on others. Without them QDQ models are computed correctly, in float32: OpenVINO 2024.6 to
# 2026.4, emulated by benchmarks/emulated.py.
_IN_FLOAT = {"LP_TRANSFORMS_MODE": False}
# An IR's outputs beside the model's: int8 computed with other fusions differs by less, garbage by more.
_LEAST_DECIBELS = 25.0


class OpenVinoBackend:
    """One compiled model with as many streams as requests run at the same time.

    The batch is fixed when the model is compiled: with a free batch axis OpenVINO picks slower kernels. Smaller batches
    are padded and the padding is cut off again. A model that takes one image at a time is run in a loop.
    """

    name = "openvino"
    version = openvino.__version__.partition("-")[0]

    def __init__(self, model: Path, batch: int, placement: Placement) -> None:
        self.placement = placement
        self._most = batch
        compiled = compile_model(model, batch, placement)
        self._batch = int(compiled.inputs[0].shape[0])  # 1 of a model that takes no more, whatever was asked for
        self.input = _spec(compiled.inputs[0])
        self.output = _spec(compiled.outputs[0])
        requests = [_Request(compiled) for _ in range(placement.streams)]
        for request in requests:
            # One at a time: two threads that both made the first call to a fresh model hung once.
            request.compute(np.zeros(request.images.shape, self.input.dtype))
        self._requests = Engines(requests)
        self._callers: set[int] = set()  # threads that computed, by the kernel's number

    def infer(self, batch_nchw: Batch) -> Output:
        self.input.check(batch_nchw, self._most)
        self._callers.add(threading.get_native_id())
        with self._requests.borrow() as request:
            try:
                outputs = [request.compute(part) for part in parts_of(batch_nchw, self._batch)]
            except RuntimeError as err:
                raise BackendError(f"OpenVINO failed on {len(batch_nchw)} images ({last_line(err)})") from None
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def close(self) -> None:
        # Threads that have computed free what OpenVINO keeps for each of them when they end. Python's join returns
        # before that: freeing the model, or ending the process, at the same time crashed one run in thirty.
        wait_for_end(self._callers)
        self._requests.close()


class _Request:
    """One stream of a compiled model, and its memory.

    Images are copied there: `infer` with arrays costs .25 ms more a call, in which it looks at inputs and outputs and
    gives the request other memory. That is 1.5% of the time of resnet18 in batches of two.
    """

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self._request = compiled.create_infer_request()
        self.images: Batch = self._request.get_input_tensor(0).data  # the request's own memory

    def compute(self, part_nchw: Batch) -> Output:
        """Return the outputs of images, at most as many as the model was compiled for."""
        count = len(part_nchw)
        self.images[:count] = part_nchw
        self.images[count:] = 0
        # On this thread: those of OpenVINO's own are not there after a fork.
        self._request.infer(share_outputs=True)
        found: Output = self._request.get_output_tensor(0).data[:count].copy()
        return found


def compile_model(
    model: Path,
    batch: int,
    placement: Placement,
    more: Mapping[str, object] | None = None,
    change: Callable[[openvino.Model], openvino.Model] | None = None,
) -> openvino.CompiledModel:
    """Compile for one batch size, 1 where the model takes no more, with `more` of OpenVINO's own properties.

    Args:
        change: returns what is compiled in the place of the model as it is read.

    Raises:
        BackendError: it refuses the model.
    """
    core = openvino.Core()
    try:
        network = core.read_model(str(model))
        shape = network.inputs[0].get_partial_shape()
        shape[0] = shape[0].get_length() if shape[0].is_static else batch
        network.reshape({network.inputs[0]: shape})
        copy_joined_levels(network)
        if change is not None:
            network = change(network)
        settings = {
            "NUM_STREAMS": placement.streams,
            "INFERENCE_NUM_THREADS": placement.threads,
            # It pins threads to cores, from the first core on. Processes that share the cores would all take the first.
            **({} if placement.threads >= available_cores() else {"ENABLE_CPU_PINNING": False}),
            # Otherwise it computes float parts, and whole float32 models, in bfloat16 on CPUs that support it.
            "INFERENCE_PRECISION_HINT": "bf16" if computes_in_bfloat16(model) else "f32",
            **(_IN_FLOAT if is_arm() else {}),
            **(more or {}),
        }
        return core.compile_model(network, "CPU", settings)
    except RuntimeError as err:
        raise BackendError(f"{model}: OpenVINO {openvino.__version__} does not load it ({last_line(err)})") from None


def save_ir(model: Path, path: Path) -> None:
    """Write a model as OpenVINO IR, `path` (.xml) and a .bin beside it; float weights stay float32.

    Raises:
        BackendError: OpenVINO refuses the model, or what it writes answers otherwise than the model.
    """
    try:
        # As it is read, an int8 attention network with a free batch is compiled wrongly (4 dB beside exact arithmetic,
        # OpenVINO 2026.4.1); after the transformations of `convert_model` it is not.
        openvino.save_model(openvino.convert_model(str(model)), str(path), compress_to_fp16=False)
        found = _decibels_of_ir(model, path)
    except RuntimeError as err:
        raise BackendError(f"{model}: OpenVINO {openvino.__version__} does not save it ({last_line(err)})") from None
    if found < _LEAST_DECIBELS:
        raise BackendError(
            f"{model}: the IR that OpenVINO {openvino.__version__} makes of it answers otherwise than the ONNX model "
            f"({found:.1f} dB); give OpenVINO the ONNX file, with the batch fixed when it is compiled"
        )


def _decibels_of_ir(model: Path, path: Path) -> float:
    """Return the SQNR of an IR's outputs beside the model's, in dB, for two random images and then for one.

    The IR is compiled as servers do, with its batch free, and the model as it is run here.
    """
    with_batch = compile_model(model, 2, Placement(1, 1))
    free = openvino.Core().compile_model(
        str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32", **(_IN_FLOAT if is_arm() else {})}
    )
    shape = with_batch.inputs[0].shape
    noise = np.random.default_rng(0).integers(0, 256, tuple(shape))
    is_pixels = with_batch.inputs[0].get_element_type().to_dtype() == np.uint8
    images = noise.astype(np.uint8) if is_pixels else ((noise - 127.5) / 64).astype(np.float32)
    expected = np.array(with_batch([images])[0], np.float64)
    ones = [free([image[None]])[0] for image in images]
    worst = np.inf
    for found in (free([images])[0], np.concatenate(ones)):
        noise_power = float(np.square(found - expected).sum())
        power = float(np.square(expected).sum())
        worst = min(worst, 10 * np.log10(max(power, 1e-30) / max(noise_power, power * 1e-20, 1e-30)))
    return float(worst)


def _spec(port: openvino.Output) -> TensorSpec:
    """The batch axis is reported free: `infer` takes any size up to the compiled one."""
    axes = [axis.get_length() if axis.is_static else None for axis in port.get_partial_shape()]
    return TensorSpec(port.get_any_name(), port.get_element_type().to_dtype().name, (None, *axes[1:]))
