"""Any ONNX classifier, brought into the form that quantization needs.

That form: one float32 input [N, C, H, W] with a free batch axis, one float32 output [N, classes], opset 17 or the
model's own if later, batch norms folded into convolutions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, external_data_helper, numpy_helper, version_converter
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from pipeline.errors import DataError
from pipeline.models.scores import find_scores

OPSET = 17
_BATCH = "N"
_STANDARD = ("", "ai.onnx")
# Endings of the operators of quantized models: QuantizeLinear, QLinearConv, ConvInteger, ...
_QUANTIZED = ("QuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
_RUNTIME_ERRORS = (ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.InvalidGraph, ort_errors.NotImplemented)


def load(path: Path, chw: tuple[int, int, int]) -> onnx.ModelProto:
    """Return the classifier in `path`, normalised as the module's docstring says.

    Args:
        path: `.onnx` file; tensors kept outside it must lie in its own folder.
        chw: the input shape that the build file gives.

    Raises:
        DataError: not an ONNX model, not a classifier of images, or one with another input shape.
    """
    model = _read(path)
    _check_signature(model, path, chw)
    if _opset(model) < OPSET:
        try:
            model = version_converter.convert_version(model, OPSET)
        except (RuntimeError, ValueError) as err:
            raise DataError(
                f"{path}: cannot be brought to opset {OPSET} ({err}); export it with opset {OPSET}"
            ) from None
    _set_shapes(model, chw)
    model = _fold(model, path)
    # Only now are reshapes of weights folded away, and shapes that were computed from constants known.
    _set_shapes(model, chw)
    _free_reshapes(model)
    return model


def files(path: Path) -> list[Path]:
    """Return the files that hold a model: its own, then those with its tensors; only the first if it is none."""
    try:
        tensors = list(external_data_helper._get_all_tensors(onnx.load(path, load_external_data=False)))
    except Exception:  # `load` says what is wrong with it
        return [path]
    outside = {_location(tensor) for tensor in tensors if external_data_helper.uses_external_data(tensor)}
    return [path, *(path.parent / name for name in sorted(outside) if (path.parent / name).is_file())]


def _location(tensor: TensorProto) -> str:
    return next((str(entry.value) for entry in tensor.external_data if entry.key == "location"), "")


def _read(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise DataError(f"{path}: no such model; give the file with --weights FILE or frontend.checkpoint")
    try:
        model = onnx.load(path, load_external_data=False)
        for tensor in external_data_helper._get_all_tensors(model):
            if external_data_helper.uses_external_data(tensor):
                _check_external(tensor, path)
        external_data_helper.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except DataError:
        raise
    except Exception as err:  # protobuf, onnx and the file system each raise their own kinds
        reason = str(err).strip().partition("\n")[0] or type(err).__name__
        raise DataError(f"{path}: not a valid ONNX model ({reason}); export it again") from None
    domains = sorted({node.domain for node in model.graph.node} - set(_STANDARD))
    if domains:
        raise DataError(f"{path}: uses operators outside standard ONNX ({', '.join(domains)}); export it without them")
    if any(node.op_type.endswith(_QUANTIZED) for node in model.graph.node):
        raise DataError(f"{path}: is quantized already; wanted the float32 model")
    return model


def _opset(model: onnx.ModelProto) -> int:
    # A file may declare other domains too, before this one, without using them.
    return next(int(opset.version) for opset in model.opset_import if opset.domain in _STANDARD)


def _check_external(tensor: TensorProto, path: Path) -> None:
    location = _location(tensor)
    target = (path.parent / location).resolve()
    if not target.is_relative_to(path.parent.resolve()):
        raise DataError(f"{path}: tensor {tensor.name} lies outside the model's folder ({location}); not loaded")
    if not target.is_file():
        raise DataError(f"{path}: tensor {tensor.name} wants the file {location} beside the model, which is missing")


def _dims(value: onnx.ValueInfoProto) -> list[int | None]:
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]


def _check_signature(model: onnx.ModelProto, path: Path, chw: tuple[int, int, int]) -> None:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise DataError(f"{path}: {len(inputs)} inputs and {len(model.graph.output)} outputs; wanted one of each")
    kind = inputs[0].type.tensor_type.elem_type
    dims = _dims(inputs[0])
    fits = len(dims) == 4 and all(found in (None, want) for found, want in zip(dims[1:], chw, strict=True))
    if kind != TensorProto.FLOAT or not fits:
        name = TensorProto.DataType.Name(kind).lower()
        raise DataError(
            f"{path}: input {inputs[0].name!r} is {name} {dims}; the build file wants float [N, "
            f"{', '.join(map(str, chw))}]; set frontend.shape and process_ops to the model's size"
        )


def _set_shapes(model: onnx.ModelProto, chw: tuple[int, int, int]) -> None:
    """Declare the input [N, *chw] and a free first axis of the output; drop what was inferred from another batch.

    Weights that are listed among the inputs are removed from there: as inputs they would not be folded.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    for value in [value for value in graph.input if value.name in constants]:
        graph.input.remove(value)
    input_dims, output_dims = graph.input[0].type.tensor_type.shape.dim, graph.output[0].type.tensor_type.shape.dim
    for dim, size in zip(input_dims[1:], chw, strict=True):
        dim.dim_value = size
    for dim in (input_dims[0], *output_dims[:1]):
        dim.dim_param = _BATCH
    del graph.value_info[:]


def _free_reshapes(model: onnx.ModelProto) -> None:
    """Let reshapes to a constant shape copy the batch axis.

    Exports with a fixed batch of one (the vendor's script makes them) keep it in shapes such as [1, 2048]; 0 means "as
    the input has it".
    """
    shapes = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                shapes[node.output[0]] = attribute.t
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[1] in shapes:
            tensor = shapes[node.input[1]]
            shape = numpy_helper.to_array(tensor).copy()
            if shape.size > 1 and shape[0] == 1:
                shape[0] = 0
                tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))


def _fold(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Fold batch norms and constants with ONNX Runtime's basic optimizations, which keep to standard operators."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        options.log_severity_level = 4  # what goes wrong is raised
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except _RUNTIME_ERRORS as err:
            reason = str(err).strip().partition("\n")[0]
            raise DataError(f"{path}: ONNX Runtime does not load it ({reason}); export it again") from None
        except ort_errors.InvalidProtobuf:  # what it says when it cannot write
            raise DataError(f"{tempfile.gettempdir()}: has no room; make some, or name another by TMPDIR") from None
        folded = onnx.load(options.optimized_model_filepath)
    # ONNX Runtime declares its own domains whether they are used or not.
    standard = [opset for opset in folded.opset_import if opset.domain in _STANDARD]
    del folded.opset_import[:]
    folded.opset_import.extend(standard)
    # Quantization tells nodes apart by name, and names are optional in ONNX.
    taken = {node.name for node in folded.graph.node}
    for index, node in enumerate(folded.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{index}"
            while node.name in taken:
                node.name += "_"
    return folded


def run(model: onnx.ModelProto, batch_nchw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the model's output for one batch, computed in float32: [N, C, H, W] -> [N, classes].

    Raises:
        DataError: the model cannot take this batch.
    """
    return run_each(model, [batch_nchw])[0]


def run_each(model: onnx.ModelProto, batches_nchw: Sequence[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
    """Return `run` of every batch; the model is loaded once."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    outputs = []
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for batch_nchw in batches_nchw:
            outputs.append(session.run(None, {model.graph.input[0].name: batch_nchw})[0])
    except _RUNTIME_ERRORS as err:
        size = len(batches_nchw[len(outputs)])
        raise DataError(f"model does not take a batch of {size}: {str(err).strip()}") from None
    return outputs


def check_batch(model: onnx.ModelProto, batch_nchw: npt.NDArray[np.float32], path: Path) -> int:
    """Check that images in a batch get the answers they get alone; return the number of classes.

    Raises:
        DataError: the batch axis is not free, the output is not [N, classes], or holds NaN or Inf.
    """
    try:
        *single, together = run_each(model, [*(image[None] for image in batch_nchw), batch_nchw])
    except DataError as err:
        raise DataError(f"{path}: {err}; export it with a free batch axis") from None
    if together.ndim != 2 or len(together) != len(batch_nchw) or together.shape[1] < 2:
        raise DataError(f"{path}: output is {list(together.shape)} for {len(batch_nchw)} images; wanted [N, classes]")
    if not np.isfinite(together).all():
        raise DataError(f"{path}: output holds NaN or Inf on real images; check the weights and the preprocessing")
    if relative_error(np.concatenate(single), together) > 1e-3:
        raise DataError(f"{path}: images in a batch get other answers than alone; export it with a free batch axis")
    return int(together.shape[1])


def relative_error(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Return the largest difference as a share of the largest reference value."""
    return float(np.abs(reference - other).max() / max(float(np.abs(reference).max()), 1e-12))


def append_softmax(model: onnx.ModelProto) -> None:
    """End the model in a softmax over the classes (`graph.extra_ops`), where its outputs are logits of some kind."""
    graph = model.graph
    output = graph.output[0]
    if not find_scores(model).takes_softmax:
        return
    logits = f"{output.name}_logits"
    for node in graph.node:
        node.output[:] = [logits if name == output.name else name for name in node.output]
        node.input[:] = [logits if name == output.name else name for name in node.input]
    graph.node.append(onnx.helper.make_node("Softmax", [logits], [output.name], name="softmax", axis=1))
