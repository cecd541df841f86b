"""Which runtimes are installed, which one `auto` takes, and opening a model in one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from pipeline.errors import BackendError
from pipeline.host.hardware import is_arm
from pipeline.runtimes.base import Backend, Placement, Runtime


def place(instances: int, cores: int) -> Placement:
    """Share `cores` among `instances` requests in flight.

    One stream a core at most: a second stream on the same core only takes cache from the first (8 streams of
    two threads on 2 cores ran at half the rate of 2 streams of one). The requests beyond the streams wait their turn.
    """
    streams = max(1, min(instances, cores))
    return Placement(streams=streams, threads=max(cores, streams))


def installed_runtimes() -> list[Runtime]:
    return [runtime for runtime in (Runtime.OPENVINO, Runtime.ONNXRUNTIME) if importlib.util.find_spec(runtime.value)]


def version_of(runtime: Runtime) -> str:
    """Return the version of an installed runtime; "" where it is the module of another distribution."""
    try:
        return metadata.version(runtime.value)
    except metadata.PackageNotFoundError:  # as of onnxruntime-gpu
        return ""


def default_runtime() -> Runtime:
    """Return the installed runtime that computes int8 models in int8 here: OpenVINO, on ARM ONNX Runtime."""
    if importlib.util.find_spec("openvino") is None or (is_arm() and importlib.util.find_spec("onnxruntime")):
        return Runtime.ONNXRUNTIME
    return Runtime.OPENVINO


def choose(runtime: Runtime) -> Runtime:
    """Return the runtime that `auto` means on this machine, without regard to a package; any other unchanged.

    Raises:
        BackendError: the runtime asked for is not installed.
    """
    if runtime is Runtime.AUTO:
        return default_runtime()
    if importlib.util.find_spec(runtime.value) is None:
        raise BackendError(f"--runtime {runtime.value}: not installed; run: pip install {runtime.value}")
    return runtime


def survives_fork(runtime: Runtime, placement: Placement) -> bool:
    """Whether a model opened this way computes in its caller's threads only, and so works in a forked process too.

    Threads do not survive a fork. ONNX Runtime starts none for sessions of one thread, and OpenVINO needs none for
    a single stream of one thread.
    """
    if sys.platform != "linux":  # elsewhere system libraries may not survive a fork either
        return False
    if choose(runtime) is Runtime.OPENVINO:
        return placement == Placement(1, 1)
    return placement.threads == placement.streams


@contextmanager
def open_backend(
    runtime: Runtime, model: Path, *, batch: int, placement: Placement, wide_weights: bool = False
) -> Iterator[Backend]:
    """Load a model for batches of at most `batch` images; it is freed at the end of the `with`.

    Args:
        wide_weights: its int8 weights need CPUs that add products in 32 bits. On others ONNX Runtime then uses its
            exact kernels, which are slower; OpenVINO has none and saturates.

    Raises:
        BackendError: the runtime is not installed, or refuses the model.
    """
    opened: Backend
    if choose(runtime) is Runtime.OPENVINO:
        from pipeline.runtimes.ov import OpenVinoBackend

        opened = OpenVinoBackend(model, batch, placement)
    else:
        from pipeline.runtimes.ort import OnnxRuntimeBackend

        opened = OnnxRuntimeBackend(model, batch, placement, wide_weights=wide_weights)
    try:
        yield opened
    finally:
        opened.close()
