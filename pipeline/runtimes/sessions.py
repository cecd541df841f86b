"""Sessions of ONNX Runtime on ONNX models in memory: the reference that other forms of a model are compared with.

Packages are run through `opening` instead. Sessions here use ONNX Runtime's own choices of threads, and their outputs
are arrays as it returns them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
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
# Bytes of a tensor that a session takes as it is. Within a serialized model it would be in memory four times while a
# session opens: wide_resnet50_2 took 1.7 GB of memory and 2 CPU seconds, and takes .9 GB and 1 s.
_LARGE = 1 << 20


def tensor_bytes(tensor: TensorProto) -> int:
    """Return the size of a tensor's values, by its type and shape: `ByteSize` serializes it to tell."""
    size: int = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(math.prod(tensor.dims)) * size


def serialize(model: onnx.ModelProto, outputs: Sequence[str] = ()) -> tuple[bytes, dict[str, onnxruntime.OrtValue]]:
    """Return a serialized model, and its large tensors by name for `add_external_initializers` of a session's options.

    Args:
        outputs: tensors that become outputs of it, beside its own.
    """
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph, tensors = light.graph, {}
    graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, field).extend(getattr(model.graph, field))
    already = {value.name for value in graph.output}
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in already)
    for tensor in model.graph.initializer:
        if tensor_bytes(tensor) < _LARGE:
            graph.initializer.append(tensor)
            continue
        values = numpy_helper.to_array(tensor)
        tensors[tensor.name] = onnxruntime.OrtValue.ortvalue_from_numpy(values)
        apart = graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        apart.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "in memory", "offset": "0", "length": str(values.nbytes)}.items():
            apart.external_data.add(key=key, value=value)
    return light.SerializeToString(), tensors


def open_session(
    model: str | bytes | onnx.ModelProto, *, optimized: bool = True, threads: int | None = None, prepacked: bool = True
) -> onnxruntime.InferenceSession:
    """Open a model on the CPU.

    Args:
        model: path of a file, or a model, serialized or not.
        optimized: False computes each node of the file as it stands.
        threads: None leaves the number to ONNX Runtime.
        prepacked: False leaves large weights as they lie: a few images need no faster ones, and while those are made,
            a VGG is in memory once more.

    Raises:
        RUNTIME_ERRORS, FILE_ERRORS: ONNX Runtime does not load it.
    """
    options = _options()
    if not prepacked:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if isinstance(model, onnx.ModelProto):
        model, tensors = serialize(model)
        options.add_external_initializers(list(tensors), list(tensors.values()))
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
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it takes cores from other work
    return options
