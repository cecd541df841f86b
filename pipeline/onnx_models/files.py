"""Reads an ONNX file completely, checks it, and removes formal variations.

Formal variations change nothing that a node computes: the version of the file format, initializers listed among the
inputs, trailing empty names, the order of nodes, local functions, operators that ONNX Runtime's optimizer fused,
another name for the standard domain, tensors in files beside the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper, helper, inliner, numpy_helper

from pipeline.errors import DataError, describe_absent, first_line
from pipeline.onnx_models import forms, opsets, upgrades
from pipeline.onnx_models.fused import split_fused
from pipeline.onnx_models.graphs import check_model, graphs_of, sort_nodes
from pipeline.onnx_models.label_outputs import take_labels_off
from pipeline.onnx_models.norms import spell_out_group_norms

_STANDARD = ("", "ai.onnx")
# Endings of the operators of quantized models: QuantizeLinear, QLinearConv, ConvInteger, ...
_QUANTIZED = ("QuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
# Beginnings of the names of those of ONNX Runtime.
_QUANTIZED_THERE = (
    *("QLinear", "QGemm", "QAttention", "QMoE", "QEmbed", "QOrdered", "MatMulNBits", "MatMulBnb4", "MatMulFpQ4"),
    *("MatMulInteger", "DynamicQuantize", "GatherBlockQuantized"),
)
# Versions of the file format that every recent runtime reads, and in which initializers are not inputs.
_LEAST_IR, _LARGEST_IR = 8, 10
_RUNTIME = "com.microsoft"  # and com.microsoft.nchwc: the domains of ONNX Runtime
_SHOWN = 3  # operators in a message
_LFS = b"version https://git-lfs.github.com/"


def files(path: Path) -> list[Path]:
    """Return the files that hold a model: its own, then those with its tensors; only the first if it is not a model."""
    beside = [_beside(path, name) for name in _locations(path)]
    return [path, *(file for file in beside if file.is_file())]


def with_tensors_beside(path: Path) -> Path:
    """Return a model's path, or its link's target where the tensors lie beside that, as runtimes need it."""
    return path if all((path.parent / name).exists() for name in _locations(path)) else path.resolve()


def _locations(path: Path) -> list[str]:
    """Return the names of the files that hold tensors of a model; none if it is not a model."""
    try:
        tensors = list(external_data_helper._get_all_tensors(onnx.load(path, load_external_data=False)))
    except Exception:  # `read` raises the error
        return []
    return sorted({_location(tensor) for tensor in tensors if external_data_helper.uses_external_data(tensor)})


def check(path: Path) -> None:
    """Raise what `read` would of a file's structure and of the files beside it, without reading the tensors in them."""
    model = structure(path)
    for tensor in external_data_helper._get_all_tensors(model):
        if external_data_helper.uses_external_data(tensor):
            _find_external(tensor, path)
    opsets.lower(model, path)


def read(path: Path) -> onnx.ModelProto:
    """Return the model with all of its tensors, without formal variations.

    Raises:
        DataError: no file, not an ONNX model, operators outside the standard, a quantized model, or an opset that no
            runtime here supports.
    """
    model = structure(path)
    try:
        for tensor in external_data_helper._get_all_tensors(model):
            if external_data_helper.uses_external_data(tensor):
                _load_external(tensor, path)
        spell_out_group_norms(model, opsets.version_of(model))
        opsets.lower(model, path)
        forms.name_nodes(model)
        check_model(model)
    except (onnx.checker.ValidationError, OSError, ValueError, TypeError) as err:
        raise _invalid(path, err) from None
    return model


def structure(path: Path) -> onnx.ModelProto:
    """Return the model without the tensors that lie beside it; raises as `read`."""
    if not path.is_file():
        absent = describe_absent(path, "no such model")
        raise DataError(f"{path}: {absent}; give the file with --weights FILE or frontend.checkpoint")
    _check_pointer(path, path)
    try:
        model = _without_functions(onnx.load(path, load_external_data=False))
    except (DecodeError, RuntimeError, ValueError, TypeError, OSError) as err:
        raise _invalid(path, err) from None
    if not model.graph.node:
        raise _invalid(path, ValueError("it has no nodes"))
    _tidy(model)
    if not model.opset_import or model.opset_import[0].domain != "":
        raise _invalid(path, ValueError("it declares no opset of standard ONNX"))
    if any(_is_quantized(node, graph) for graph in graphs_of(model.graph) for node in graph.node):
        raise DataError(f"{path}: is quantized already; wanted the float32 model")
    split_fused(model, opsets.version_of(model))
    take_labels_off(model)
    _check_domains(model, path)
    return model


def _is_quantized(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Tell whether a node quantizes, computes with integers, or reads quantized weights."""
    if node.op_type == "DequantizeLinear":  # of pixels or a scalar it is a scaling like any other
        return any(tensor.name == node.input[0] and len(tensor.dims) > 1 for tensor in graph.initializer)
    there = node.domain.startswith(_RUNTIME) and node.op_type.startswith(_QUANTIZED_THERE)
    return there or node.op_type.endswith(_QUANTIZED)


def _without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the nodes of its own functions in place of their calls."""
    if not model.functions:
        return model
    version = next((opset.version for opset in model.opset_import if opset.domain in _STANDARD), 0)
    for function in model.functions:  # one of another opset is not inlined
        for opset in function.opset_import:
            if opset.domain in _STANDARD and _are_the_same(function.node, opset.version, version):
                opset.version = version
    return inliner.inline_local_functions(model)


def _are_the_same(nodes: Sequence[onnx.NodeProto], one: int, other: int) -> bool:
    """Tell whether the standard operators of some nodes are those of two opsets."""
    low, high = sorted((one, other))
    kinds = {node.op_type for node in nodes if node.domain in _STANDARD}
    return all(upgrades.is_kept(kind, low, high) for kind in kinds)


def _check_domains(model: onnx.ModelProto, path: Path) -> None:
    others = sorted(
        {(node.domain, node.op_type) for graph in graphs_of(model.graph) for node in graph.node if node.domain}
    )
    if not others:
        return
    shown = ", ".join(f"{domain} {kind}" for domain, kind in others[:_SHOWN]) + (", ..." if others[_SHOWN:] else "")
    if all(domain.startswith(_RUNTIME) for domain, _ in others):
        raise DataError(
            f"{path}: uses operators of ONNX Runtime ({shown}), as its optimizer writes them; give the file from "
            "before the optimization, or export the network again"
        )
    raise DataError(f"{path}: uses operators outside standard ONNX ({shown}); export it without them")


def _check_pointer(file: Path, path: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(len(_LFS)) == _LFS:
            what = "it" if file == path else file.name
            raise DataError(f"{path}: {what} is a Git LFS pointer, not the file itself; run git lfs pull")


def _invalid(path: Path, err: Exception) -> DataError:
    reason = first_line(err)
    return DataError(f"{path}: not a valid ONNX model ({reason}); export it again")


def _tidy(model: onnx.ModelProto) -> None:
    """Remove the formal variations that do not concern tensors."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants.update(tensor.values.name for tensor in model.graph.sparse_initializer)
    for value in [value for value in model.graph.input if value.name in constants]:
        model.graph.input.remove(value)  # defaults, which IR version 3 had to list; nothing sets them
    del model.graph.value_info[:]  # inferred again where it is needed
    for value in (*model.graph.input, *model.graph.output):  # runtimes need neither
        if value.type.WhichOneof("value") in (None, "tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.elem_type = value.type.tensor_type.elem_type or TensorProto.FLOAT
            value.type.tensor_type.shape.SetInParent()
    for sparse in model.graph.sparse_initializer:  # which tools for weights do not support
        model.graph.initializer.append(_dense(sparse))
    del model.graph.sparse_initializer[:]
    model.ir_version = min(max(model.ir_version, _LEAST_IR), _LARGEST_IR)
    for graph in graphs_of(model.graph):
        graph.name = graph.name or "graph"
        sort_nodes(graph)
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "sparse_value":
                dense = _dense(node.attribute[0].sparse_tensor)
                node.attribute[0].CopyFrom(onnx.helper.make_attribute("value", dense))
            node.domain = "" if node.domain in _STANDARD else node.domain
            for names in (node.input, node.output):
                while names and not names[-1]:
                    names.pop()
    used = {node.domain for graph in graphs_of(model.graph) for node in graph.node}
    version = next((opset.version for opset in model.opset_import if opset.domain in _STANDARD), 0)
    others = [opset for opset in model.opset_import if opset.domain in used - {""}]
    # A file may declare domains that it does not use.
    declared = [onnx.helper.make_opsetid("", version), *others] if version else others
    del model.opset_import[:]
    model.opset_import.extend(declared)


def _dense(sparse: onnx.SparseTensorProto) -> TensorProto:
    """Return a sparse tensor as a dense one. Indices of its values are [count] over all elements, or [count, axes]."""
    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(list(sparse.dims), values.dtype)
    dense[np.unravel_index(places, dense.shape) if places.ndim == 1 else tuple(places.T)] = values
    return numpy_helper.from_array(dense, sparse.values.name)


def _location(tensor: TensorProto) -> str:
    return next((str(entry.value) for entry in tensor.external_data if entry.key == "location"), "")


def _beside(path: Path, location: str) -> Path:
    """Return the file of a model's tensors: beside the model, or beside the target where the model is a link."""
    file = path.parent / location
    return file if file.exists() else path.resolve().parent / location


@dataclass(frozen=True)
class _Place:
    """Where the values of a tensor lie."""

    file: Path
    offset: int  # bytes
    length: int


def _find_external(tensor: TensorProto, path: Path) -> _Place:
    """Return where a tensor lies that is beside the model, without reading it.

    Both files may be links, as in the cache of Hugging Face: then the tensors must lie beside the model's real file.

    Raises:
        DataError: outside the model's folder, missing, a pointer, or cut short.
    """
    location = _location(tensor)
    target = _beside(path, location).resolve()
    folders = (path.parent.resolve(), path.resolve().parent)
    if not any(target.is_relative_to(folder) for folder in folders):
        linked = (path.parent / location).absolute().is_relative_to(path.parent.absolute()) and ".." not in location
        copy = f": it is a link to {target}; copy the folder with cp -rL"
        advice = copy if linked else "; save it again with its tensors beside it, or in the file itself"
        raise DataError(
            f"{path}: tensor {tensor.name} lies outside the model's folder ({location}); not loaded{advice}"
        )
    if not target.is_file():
        raise DataError(f"{path}: tensor {tensor.name} wants the file {location} beside the model, which is missing")
    _check_pointer(target, path)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:  # a file may leave both out: then the tensor begins the file, and is as long as its shape says
        place = _Place(target, int(entries.get("offset", 0)), int(entries.get("length") or _size_of(tensor)))
    except (ValueError, KeyError):  # no number, or no element type
        place = _Place(target, -1, 0)
    if place.offset < 0 or place.length < 0:
        raise DataError(f"{path}: tensor {tensor.name} has no place in {location} (offset or length); export it again")
    if place.offset + place.length > target.stat().st_size:
        raise DataError(f"{path}: {location} ends within tensor {tensor.name}; copy or download it again")
    return place


def _size_of(tensor: TensorProto) -> int:
    """Return the bytes of a tensor by its shape. Raises KeyError where it has no element type."""
    return int(math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _load_external(tensor: TensorProto, path: Path) -> None:
    place = _find_external(tensor, path)
    with place.file.open("rb") as stream:
        stream.seek(place.offset)
        tensor.raw_data = stream.read(place.length)
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]
