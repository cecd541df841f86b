"""Reads the tensors of a pickle that holds other objects too, without importing or calling anything it names.

Training scripts save arguments, configurations and optimizers beside the weights, which `torch.load(weights_only=True)`
refuses. This reader builds tensors and arrays itself; everything else that a pickle names becomes an inert placeholder,
which stores what the pickle assigns to it and does nothing.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.weights.file_kinds import FileKind
from pipeline.weights.pdparams import Array, ArrayReader, StandIn, check_opcodes, finished
from pipeline.weights.placeholders import Placeholder
from pipeline.weights.storages import Storage, view, view_as

# Modules that no checkpoint needs, and that attacks use.
_NEVER = frozenset({"os", "posix", "nt", "subprocess", "socket", "shutil", "runpy", "ctypes", "pty"})
_NEVER_BUILTINS = frozenset({"eval", "exec", "execfile", "compile", "open", "__import__", "input"})
_BUILTINS = ("builtins", "__builtin__")
_DTYPES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "Untyped": torch.uint8,
        "ComplexFloat": torch.complex64,
        "ComplexDouble": torch.complex128,
    }.items()
}
# Parts of pickled modules and containers, not worth naming among what was skipped.
_UNTOLD = ("builtins.", "__builtin__.", "torch.nn.modules.", "copyreg.", "copy_reg.", "collections.")
_CLASS_MAKERS = ("_make_skeleton_class", "_make_skeleton_enum", "_lookup_class_or_track")  # of cloudpickle
_MOST_NESTING = 2  # pickles of storages inside a pickle

Persistent = Callable[[object], object]  # persistent id -> storage


class HostileError(pickle.UnpicklingError):
    """The file names something that no checkpoint needs."""


class WrappedTensorError(pickle.UnpicklingError):
    """The file holds tensors of a class of their own; the text completes a message that begins with its path."""


def read_tensors(path: Path, kind: FileKind) -> tuple[object, tuple[str, ...]]:
    """Return what a checkpoint holds, with placeholders for what is neither tensor, array nor plain data.

    Args:
        path: the file.
        kind: TORCH, TORCH_OLD or PICKLE.

    Returns:
        The content, and the names of the types that placeholders stand for.

    Raises:
        HostileError: it names a function that runs programs or code.
        WrappedTensorError: its tensors are sharded or quantized.
        pickle.UnpicklingError, and many others: the file is damaged.
    """
    passed_over: dict[str, None] = {}
    if kind is FileKind.TORCH:
        value = _read_zip(path, passed_over)
    else:
        with path.open("rb") as stream:
            value = _read_old(stream, os.fstat(stream.fileno()).st_size, passed_over, 0)
    return value, tuple(passed_over)


def _read_zip(path: Path, passed_over: dict[str, None]) -> object:
    limit = path.stat().st_size
    storages: dict[str, Storage] = {}
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = next(name for name in names if name.endswith("/data.pkl")).removesuffix("data.pkl")

        def member(name: str) -> bytes:
            if archive.getinfo(name).file_size > limit:  # it was compressed, which checkpoints never are
                raise pickle.UnpicklingError(f"{name} is larger than the file")
            return archive.read(name)

        if f"{root}byteorder" in names and member(f"{root}byteorder").decode() != sys.byteorder:
            raise pickle.UnpicklingError("it was written on a machine of another byte order")

        def persistent(name: object) -> Storage:
            dtype, key, _ = _storage_of(name)
            if key not in storages:
                storages[key] = Storage(_bytes(member(f"{root}data/{key}")), dtype)
            return storages[key]

        content = member(f"{root}data.pkl")
        return _load(io.BytesIO(content), len(content), persistent, passed_over, 0)


def _read_old(stream: IO[bytes], size: int, passed_over: dict[str, None], nesting: int) -> object:
    """Read a pickle, and where it begins with PyTorch's mark, the storages behind it (torch.save before 1.6)."""
    if nesting > _MOST_NESTING:
        raise pickle.UnpicklingError("pickles inside pickles")
    storages: dict[str, Storage] = {}
    left = size

    def persistent(name: object) -> object:
        nonlocal left
        if isinstance(name, tuple) and len(name) > 1 and name[0] == "module":  # (..., class, its file, its source)
            return name[1]
        dtype, key, count = _storage_of(name)
        if key not in storages:
            left -= count * dtype.itemsize
            if count < 0 or left < 0:
                raise pickle.UnpicklingError("storages larger than the file")
            storages[key] = Storage(torch.zeros(count * dtype.itemsize, dtype=torch.uint8), dtype)
        return storages[key]

    value = _load(stream, size, persistent, passed_over, nesting)
    if not isinstance(value, int):
        return value
    for _ in range(2):  # protocol version, facts of the machine
        _load(stream, size, persistent, passed_over, nesting)
    value = _load(stream, size, persistent, passed_over, nesting)
    keys = _load(stream, size, persistent, passed_over, nesting)
    for key in keys if isinstance(keys, list) else []:
        content = storages[key].content
        count = int.from_bytes(stream.read(8), "little")
        found = stream.read(content.numel())
        if count * storages[key].dtype.itemsize != content.numel() or len(found) != content.numel():
            raise pickle.UnpicklingError(f"storage {key} is cut short")
        content.copy_(_bytes(found))
    return value


def _storage_of(name: object) -> tuple[torch.dtype, str, int]:
    """Return element type, key and number of elements of a storage, from its persistent id."""
    known = isinstance(name, tuple) and len(name) >= 5 and name[0] == "storage" and isinstance(name[1], torch.dtype)
    view = isinstance(name, tuple) and len(name) > 5 and name[5] is not None
    if not known or view or not isinstance(name[2], str) or type(name[4]) is not int:  # type: ignore[index]
        raise pickle.UnpicklingError("a storage of unknown form")
    return name[1], name[2], name[4]  # type: ignore[index]


def _load(stream: IO[bytes], size: int, persistent: Persistent, passed_over: dict[str, None], nesting: int) -> object:
    """Read one pickle from the stream's position."""
    start = stream.tell()
    check_opcodes(stream)
    stream.seek(start)
    return _Reader(stream, size, persistent, passed_over, nesting).load()


def _bytes(content: bytes) -> Tensor:
    """Return uint8 [bytes], writable."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


class _Reader(ArrayReader):
    """Builds tensors, arrays and plain data; other objects become placeholders."""

    def __init__(
        self, stream: IO[bytes], size: int, persistent: Persistent, passed_over: dict[str, None], nesting: int
    ) -> None:
        super().__init__(stream, size)
        self._persistent, self._passed_over, self._nesting = persistent, passed_over, nesting
        self._classes: dict[str, type[Placeholder]] = {}

    def persistent_load(self, name: object) -> object:
        return self._persistent(name)

    def find_class(self, module: str, name: str, /) -> Any:
        full = f"{module}.{name}"
        if module.partition(".")[0] in _NEVER or (module in _BUILTINS and name in _NEVER_BUILTINS):
            raise HostileError(full)
        if module.partition(".")[0] == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        makers: dict[str, Callable[..., object]] = {
            "torch._utils._rebuild_tensor": view,
            "torch._utils._rebuild_tensor_v2": view,
            "torch._utils._rebuild_tensor_v3": view_as,
            "torch._utils._rebuild_parameter": _first,
            "torch._utils._rebuild_parameter_with_state": _first,
            "torch._tensor._rebuild_from_type_v2": _of_type,
            "torch.Tensor": _first,
            "torch.nn.parameter.Parameter": _first,
            "torch.storage._load_from_bytes": self._storage_in,
            "torch.Size": tuple,
            "collections.defaultdict": lambda *_: {},
            "copyreg._reconstructor": lambda kind, *_: kind(),
            "copy_reg._reconstructor": lambda kind, *_: kind(),
            **{f"cloudpickle.cloudpickle.{name}": self._class_made for name in _CLASS_MAKERS},
        }
        if full in makers:
            return StandIn(makers[full])
        if full == "collections.OrderedDict":
            return OrderedDict
        return self.array_maker(module, name) or self._placeholder(full)

    def array_maker(self, module: str, name: str) -> StandIn | None:
        """Return what builds an array, or a placeholder where arrays of its type cannot be read (text, objects)."""
        maker = super().array_maker(module, name)
        return None if maker is None else StandIn(lambda *arguments: _made(maker, arguments))

    def array(self, content: object, dtype: object, shape: object, order: object) -> Array:
        """Return the array; an empty one of objects in place of one that cannot be read, which `as_tensor` refuses."""
        try:
            return super().array(content, dtype, shape, order)
        except pickle.UnpicklingError:
            return np.empty(0, object)

    def _placeholder(self, full: str) -> type[Placeholder]:
        if full not in self._classes:
            if not full.startswith(_UNTOLD):
                self._passed_over[full] = None
            # A new class for each name and file: whatever a pickle does to it affects no other file.
            self._classes[full] = type(full, (Placeholder,), {})
        return self._classes[full]

    def _class_made(self, *arguments: object) -> type[Placeholder]:
        """Return a placeholder for a class whose definition is in the pickle itself."""
        names = [each for each in arguments if isinstance(each, str)]
        return self._placeholder(f"__main__.{names[0]}" if names else "__main__")

    def _storage_in(self, content: bytes) -> object:
        """Return a storage that was pickled separately, as pickle.dump does for PyTorch tensors."""
        return _read_old(io.BytesIO(content), len(content), self._passed_over, self._nesting + 1)


def _made(maker: StandIn, arguments: tuple[object, ...]) -> object:
    try:
        return maker(*arguments)
    except (pickle.UnpicklingError, ValueError):  # a type, or an `item`, that arrays of numbers do not have
        return Placeholder()


def _of_type(make: object, kind: object, arguments: tuple[object, ...], *_: object) -> object:
    if isinstance(make, StandIn):
        return make(*arguments)
    name = getattr(kind, "__name__", "")
    if name.endswith(".DTensor"):
        raise WrappedTensorError(
            "holds sharded tensors (DTensor), as FSDP leaves them; save whole ones, by get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True)) of torch.distributed.checkpoint.state_dict"
        )
    if name.startswith("torchao."):
        raise WrappedTensorError(f"holds quantized tensors ({name}); wanted the float weights that they were made of")
    raise WrappedTensorError(f"holds tensors of a class of their own ({name}); save plain tensors in their place")


def _first(value: object, *_: object) -> object:
    return value


def as_tensor(value: object) -> Tensor | None:
    """Return a tensor, or an array as one; None for anything else."""
    if isinstance(value, Tensor):
        return value
    array = finished(value)
    if array is None or array.dtype.kind not in "fiub" or array.dtype == np.uint16:
        return None
    # A copy: PyTorch wants memory that may be written, in the machine's byte order.
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
