"""What kind of file a checkpoint is, by its first bytes and, of a zip, by its members. Names and suffixes are ignored.

Nothing is loaded, and torch is not needed.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import IO

from pipeline.protobuf_wire import read_varint

_HEAD = 512  # bytes that identify most kinds; the mark of a tar is at 257
_ZIP = b"PK\x03\x04"
# torch.save before 1.6 wrote this number (LONG1 of 10 bytes) as a separate pickle before the content.
_TORCH_MARK = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
_TEXT_PICKLE = (b"(", b"c", b"]", b"}")  # first bytes of protocols 0 and 1; every pickle ends with a full stop
_TAR_MARK = slice(257, 262)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
}
_SAVED_MODEL = b"\x08\x01\x12"  # a schema version of 1, then the first graph
_GRAPH_DEF = (b"\x12\x0bPlaceholder", b"\x12\x05Const*", b"\x12\x0eVarHandleOp")  # the operator of a node
_GRAPH = 7  # the field of an ONNX ModelProto that holds the graph
_MOST_FIELD = 25  # of a ModelProto: its fields, and some that later versions may add


class FileKind(Enum):
    """The kind of a file; `is_weights` tells whether a state dict can be read from it."""

    TORCH = "PyTorch checkpoint"
    TORCH_OLD = "PyTorch checkpoint of before 1.6"
    PICKLE = "pickle"
    SAFETENSORS = "safetensors file"
    ONNX = "ONNX model"
    TORCHSCRIPT = "TorchScript program"
    PROGRAM = "program of torch.export"
    COMPILED = "package of AOTInductor"
    PACKAGE = "archive of torch.package"
    LFS = "Git LFS pointer"
    ANNEX = "git-annex pointer"
    HTML = "HTML page"
    TEXT = "text file"
    EMPTY = "empty file"
    COMPRESSED = "compressed file"
    TAR = "tar archive"
    ZIP = "zip archive of other files"
    HDF5 = "HDF5 file"
    TFLITE = "TensorFlow Lite model"
    INDEX = "index of a checkpoint in parts"
    OPENVINO = "OpenVINO model"
    ORT = "ONNX Runtime's own format"
    NUMPY = "NumPy file"
    KERAS = "Keras model"
    TENSORFLOW = "TensorFlow model"
    UNKNOWN = "unknown file"

    @property
    def is_weights(self) -> bool:
        return self in (FileKind.TORCH, FileKind.TORCH_OLD, FileKind.PICKLE, FileKind.SAFETENSORS, FileKind.INDEX)


def kind_of(path: Path) -> FileKind:
    """Return what the file is; UNKNOWN also for a file cut too short to tell.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
        size = os.fstat(stream.fileno()).st_size
        if head.startswith(_ZIP):
            return _kind_of_zip(stream)
        if head[:1] in _TEXT_PICKLE and stream.seek(max(0, size - 1)) is not None and stream.read(1) == b".":
            return FileKind.PICKLE
        return _kind_by_head(head, size) or (FileKind.ONNX if _is_onnx(stream, size) else FileKind.UNKNOWN)


def _kind_by_head(head: bytes, size: int) -> FileKind | None:
    found: FileKind | None = None
    if not head:
        found = FileKind.EMPTY
    elif head.startswith(b"version https://git-lfs.github.com/spec/"):
        found = FileKind.LFS
    elif b"/annex/objects/" in head and size < _HEAD:
        found = FileKind.ANNEX
    elif head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        found = FileKind.TORCH_OLD if _TORCH_MARK in head[:32] else FileKind.PICKLE
    elif _is_safetensors(head, size):
        found = FileKind.SAFETENSORS
    elif head.startswith(b"\x89HDF\r\n"):
        found = FileKind.HDF5
    elif head[4:8] == b"TFL3":
        found = FileKind.TFLITE
    elif head[4:8] == b"ORTM":
        found = FileKind.ORT
    elif head.startswith(b"\x93NUMPY"):
        found = FileKind.NUMPY
    elif head.startswith(_SAVED_MODEL) or any(mark in head for mark in _GRAPH_DEF):
        found = FileKind.TENSORFLOW
    elif head.startswith(tuple(_COMPRESSED)):
        found = FileKind.COMPRESSED
    elif head[_TAR_MARK] == b"ustar":
        found = FileKind.TAR
    elif head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html", b"<head")):
        found = FileKind.HTML
    elif _is_text(head):
        found = _kind_of_text(head)
    return found


def _kind_of_text(head: bytes) -> FileKind:
    if head.lstrip().startswith(b"<?xml") and b"<net " in head:
        return FileKind.OPENVINO
    return FileKind.INDEX if head.lstrip().startswith(b"{") and b'"weight_map"' in head else FileKind.TEXT


def _is_safetensors(head: bytes, size: int) -> bool:
    """Tell whether it begins with the length of a header, then that header in JSON."""
    return 0 < int.from_bytes(head[:8], "little") <= size - 8 and head[8:9] == b"{"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as err:
        if len(head) < _HEAD or err.start < len(head) - 3:  # else the limit cut a character in two
            return False
        text = head[: err.start].decode("utf-8")
    return all(letter.isprintable() or letter in "\t\r\n" for letter in text)


def _kind_of_zip(stream: IO[bytes]) -> FileKind:
    try:
        with zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError):
        return FileKind.TORCH  # cut short, as the error of reading it will say
    within = {name.partition("/")[2] for name in names}
    if any(name.startswith("code/") for name in within) or "constants.pkl" in within:
        return FileKind.TORCHSCRIPT
    if any("/aotinductor/" in name for name in names):
        return FileKind.COMPILED
    if ".data/extern_modules" in within:
        return FileKind.PACKAGE
    program = ("archive_format", "serialized_exported_program.json")
    if within & set(program) or set(names) & set(program):
        return FileKind.PROGRAM
    if "data.pkl" in within:
        return FileKind.TORCH
    if any(name.endswith(".weights.h5") for name in names):
        return FileKind.KERAS
    return FileKind.NUMPY if names and all(name.endswith(".npy") for name in names) else FileKind.ZIP


def _is_onnx(stream: IO[bytes], size: int) -> bool:
    """Tell whether the whole file parses as the fields of a ModelProto, including the graph."""
    fields = set()
    try:
        for field in _proto_fields(stream, size):
            fields.add(field)
    except ValueError:
        return False
    return _GRAPH in fields


def _proto_fields(stream: IO[bytes], size: int) -> Iterator[int]:
    """Yield the number of each field of a protobuf message, skipping its content.

    Raises:
        ValueError: it is not a protobuf message, or not an ONNX model, whose fields are all numbers or have a length.
    """
    stream.seek(0)
    while stream.tell() < size:
        tag = read_varint(stream)
        field, wire = tag >> 3, tag & 7
        if not 1 <= field <= _MOST_FIELD or wire not in (0, 2):
            raise ValueError(f"field {field} of type {wire}")
        length = read_varint(stream)
        if wire == 2:
            if length > size - stream.tell():
                raise ValueError("a field that is cut short")
            stream.seek(length, os.SEEK_CUR)
        yield field


_AGAIN = "download it again, or copy the file itself"
_ADVICE = {
    FileKind.ONNX: "is a whole model; build it with frontend.type onnx, or give weights alone",
    FileKind.TORCHSCRIPT: (
        "is a TorchScript program, code and weights in one; build it with frontend.type pytorch, as init writes, or "
        'save its weights by torch.save(torch.jit.load(FILE).state_dict(), "weights.pth")'
    ),
    FileKind.PROGRAM: (
        "is a program of torch.export (.pt2), code and weights in one; build it with frontend.type pytorch, as init "
        'writes, or save its weights by torch.save(torch.export.load(FILE).state_dict, "weights.pth")'
    ),
    FileKind.COMPILED: (
        "is a package of AOTInductor, machine code made of a program; give the program itself, as torch.export.save "
        "writes it, or export the network to ONNX"
    ),
    FileKind.PACKAGE: (
        "is an archive of torch.package, code and objects in one, which is not run here; where you trust it, load the "
        "model by load_pickle of torch.package.PackageImporter(FILE) and save its weights by "
        'torch.save(model.state_dict(), "weights.pth")'
    ),
    FileKind.LFS: "is a Git LFS pointer, the file itself is not here; run git lfs pull in its repository",
    FileKind.ANNEX: "is a git-annex pointer, the file itself is not here; run git annex get in its repository",
    FileKind.HTML: f"is an HTML page, as a failed download leaves; {_AGAIN}",
    FileKind.EMPTY: f"is empty; {_AGAIN}",
    FileKind.TEXT: f"is a text file that begins with {{detail}}; {_AGAIN}",
    FileKind.COMPRESSED: "is compressed by {detail}; unpack it and give the file in it",
    FileKind.TAR: "is a tar archive; unpack it and give the checkpoint in it",
    FileKind.ZIP: "is a zip archive of {detail}; unpack it and give the checkpoint in it",
    FileKind.HDF5: (
        "is an HDF5 file, as Keras writes; a whole model (model.save) is built with frontend.type keras, as init writes"
    ),
    FileKind.TFLITE: "is a TensorFlow Lite model; export the model to ONNX (tf2onnx does) and give that file",
    FileKind.OPENVINO: "is an OpenVINO model; give the ONNX file or the checkpoint that it was made of",
    FileKind.ORT: "is in ONNX Runtime's own format; give the .onnx file that it was made of",
    FileKind.NUMPY: (
        "is a NumPy file; save its arrays by safetensors.numpy.save_file, by the names that the network has in PyTorch"
    ),
    FileKind.KERAS: "is a Keras model; build it with frontend.type keras, as init writes",
    FileKind.TENSORFLOW: "is a TensorFlow model; export it to ONNX (tf2onnx does) and give that file",
    FileKind.UNKNOWN: (
        "is no checkpoint, or not a whole one; wanted a PyTorch, safetensors or PaddlePaddle file, whatever its "
        f"suffix; {_AGAIN}"
    ),
}


# Models of other tools whose content nothing tells, by their suffix.
_TOOLS = {
    ".engine": "an engine of TensorRT",
    ".plan": "an engine of TensorRT",
    ".trt": "an engine of TensorRT",
    ".mlmodel": "a Core ML model",
    ".caffemodel": "a Caffe model",
    ".prototxt": "a Caffe model",
    ".param": "an ncnn model",
    ".mnn": "an MNN model",
    ".rknn": "an RKNN model",
    ".om": "an offline model of Ascend",
    ".msgpack": "a checkpoint of Flax",
}


def why_not_weights(path: Path, kind: FileKind) -> str:
    """Return what a file without a state dict is, and what to do; completes a message that begins with its path."""
    tool = _TOOLS.get(path.suffix.lower()) if kind in (FileKind.TEXT, FileKind.UNKNOWN) else None
    if tool is not None:
        return f"is {tool}; give the ONNX file or the checkpoint that it was made of"
    describe = {FileKind.TEXT: _beginning, FileKind.COMPRESSED: _compressor, FileKind.ZIP: _members}.get(kind)
    return _ADVICE[kind].format(detail=describe(path) if describe else "")


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_HEAD)


def _beginning(path: Path) -> str:
    lines = _head(path).decode("utf-8", errors="replace").strip().splitlines()
    return repr(lines[0][:60] if lines else "")


def _compressor(path: Path) -> str:
    head = _head(path)
    return next((name for mark, name in _COMPRESSED.items() if head.startswith(mark)), "some program")


def _members(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names: Sequence[str] = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError):
        names = ()
    return f"{', '.join(names[:2])}{', ...' if len(names) > 2 else ''}" if names else "nothing"
