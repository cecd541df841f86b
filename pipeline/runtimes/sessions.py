"""Sessions of ONNX Runtime on ONNX models in memory: the reference that other forms of a model are compared with.

Packages are run through `opening` instead. Sessions here use ONNX Runtime's own choices of threads, and their outputs
are arrays as it returns them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

onnxruntime.set_default_logger_severity(4)  # some warnings ignore the setting of a session
# What loading and running a model raises: the first for models that are not valid, or not in this release, or do not
# take the given input; the second beside them for files that are damaged, absent or cannot be written.
RUNTIME_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
FILE_ERRORS = (ort_errors.InvalidProtobuf, ort_errors.NoSuchFile)


def open_session(
    model: str | bytes, *, optimized: bool = True, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """Open a model on the CPU.

    Args:
        model: path of a file, or a serialized model.
        optimized: False computes each node of the file as it stands.
        threads: None leaves the number to ONNX Runtime.

    Raises:
        RUNTIME_ERRORS, FILE_ERRORS: ONNX Runtime does not load it.
    """
    options = _options()
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def write_folded(model: bytes, target: Path, without: Sequence[str] = ()) -> None:
    """Write a model after ONNX Runtime's basic optimizations, which use standard operators only.

    Args:
        model: serialized.
        without: names of optimizers that are left out.

    Raises:
        RUNTIME_ERRORS: ONNX Runtime does not load it.
        FILE_ERRORS: it cannot write the target.
    """
    options = _options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=[*without])


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised anyway
    return options
