"""Gives ONNX Runtime quantizers at places where OpenVINO wants none, from the same file.

A SiLU, a GELU or a squeeze-and-excitation behind a convolution wants no quantizer between in OpenVINO, which computes
both at once, and one on either side in ONNX Runtime, which computes the convolution in float32 otherwise: seresnet18
runs 1.2 and 3.2 times as fast as float32 there. So a model for OpenVINO may hold the nodes of another one in its
metadata, which has the same weights. ONNX Runtime gets that one, in memory, when a package is opened.
"""

from __future__ import annotations

import base64
import zlib
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

NODES = "int8_classifier_pipeline.onnxruntime_nodes"  # metadata: the other model without what is stored already
_MOST_BYTES = 64 << 20  # unpacked: nodes and few constants take a hundredth of that
_SUFFIX = ".onnxruntime"  # of constants of the other model that differ


def add_placement(model: onnx.ModelProto, other: onnx.ModelProto) -> None:
    """Store another model's nodes, and the constants in which it differs, in a model's metadata, in place.

    Args:
        other: of the same inputs and outputs, whose larger constants are the model's; it is not changed.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    apart = onnx.ModelProto()
    apart.CopyFrom(other)
    graph = apart.graph
    del graph.initializer[:], graph.value_info[:]
    renamed = {}
    for tensor in other.graph.initializer:
        if tensor.name in stored and _are_equal(tensor, stored[tensor.name]):
            continue
        graph.initializer.append(tensor)
        if tensor.name in stored:
            renamed[tensor.name] = graph.initializer[-1].name = tensor.name + _SUFFIX
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    content = base64.b64encode(zlib.compress(apart.SerializeToString(deterministic=True), 9)).decode("ascii")
    model.metadata_props.add(key=NODES, value=content)


def take_placement(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return the other model that a model holds, with all its constants; None where it holds none.

    Raises:
        ValueError: the metadata hold something else, or more than 64 MiB.
    """
    held = [each.value for each in model.metadata_props if each.key == NODES]
    if not held:
        return None
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(base64.b64decode(held[0], validate=True), _MOST_BYTES)
        other: onnx.ModelProto = onnx.ModelProto.FromString(content)
    except (ValueError, zlib.error, DecodeError) as err:
        raise ValueError(f"metadata {NODES}: {err}") from err
    if not stream.eof or any(tensor.data_location == TensorProto.EXTERNAL for tensor in other.graph.initializer):
        raise ValueError(f"metadata {NODES}: too large, cut short, or with data in other files")
    missing = {name for node in other.graph.node for name in node.input}
    missing -= {tensor.name for tensor in other.graph.initializer}
    other.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in missing)
    return other


def read_placement(path: Path) -> bytes | None:
    """Return the content of an ONNX file with the other model in the place of its own; None where it holds none.

    For files that other programs run in ONNX Runtime: it is what ONNX Runtime runs of a package.
    """
    try:
        other = take_placement(onnx.load(path))
    except (OSError, ValueError, DecodeError):  # whoever opens the file says so
        return None
    return None if other is None else other.SerializeToString(deterministic=True)


def _are_equal(one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    return bool(one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True))
