"""Reading PaddlePaddle's checkpoints without paddle: a reader that builds dictionaries and arrays, and nothing else.

`paddle.save` writes a pickle of numpy arrays by name. A pickle may call anything that can be imported; this reader
imports nothing. The few names that such a file needs are replaced by stand-ins, any other is an error.
"""

from __future__ import annotations

import math
import mmap
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError, first_line

Array = npt.NDArray[Any]

_NAME_TABLE = "StructuredToParameterName@@"  # paddle's internal names of the parameters; not needed to load them
_SLICES = "UnpackBigParamInfor@@"  # sic; arrays above 1 GiB, which protocols 2 and 3 hold in parts
_MAX_AXES = 32
_MAX_NESTING = 4  # dictionaries in dictionaries


class _Refused(pickle.UnpicklingError):
    """The file names something that arrays do not need."""


class MoreThanArraysError(DataError):
    """The file is complete, as far as it was read, but holds more than arrays."""


def read_pdparams(path: Path) -> object:
    """Return what a `.pdparams` file holds: dictionaries, numbers, text, and numpy arrays (read-only).

    Protocols 2 to 5 are read, arrays in slices, and tensors as the pairs (name, array) of nested dictionaries.

    Raises:
        MoreThanArraysError: the file needs more than arrays to be built.
        DataError: the file is damaged.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            check_opcodes(content)
            content.seek(0)
            return _plain(ArrayReader(content, size=len(content)).load())
    except _Refused as err:
        raise MoreThanArraysError(
            f"{path}: holds more than arrays ({err}); save it again with paddle.save(model.state_dict(), FILE)"
        ) from None
    except Exception as err:  # a damaged pickle raises any of a dozen types
        raise DataError(f"{path}: not a whole checkpoint ({first_line(err)}); copy or download it again") from None


def check_opcodes(content: mmap.mmap | IO[bytes]) -> None:
    """Raise where the file ends early, or has memo indices for which unpickling would reserve more than it fills."""
    # It only calls `read` and `readline` of the file.
    for before, (opcode, argument, _) in enumerate(pickletools.genops(content)):  # type: ignore[arg-type]
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (not isinstance(argument, int) or argument > before):
            raise pickle.UnpicklingError(f"memory entry {argument} after {before} steps")


class _DType:
    """Stands in for numpy.dtype: a number's kind and width, then its byte order."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[fiub]\d{1,2}", code):
            raise _Refused(f"an array of type {code!r}")
        self._code, self._order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"byte order {state[1]!r}")
        self._order = state[1]

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self._order + self._code)


class _Array:
    """Stands in for numpy.ndarray while its parts arrive."""

    __slots__ = ("_reader", "values")

    def __init__(self, reader: ArrayReader) -> None:
        self._reader = reader
        self.values: Array | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        self.values = self._reader.array(content, dtype, shape, "F" if is_fortran else "C")


class StandIn:
    """A callable without attributes, so that a file cannot change it."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., object]) -> None:
        self._make = make

    def __call__(self, *args: object) -> object:
        return self._make(*args)


class ArrayReader(pickle.Unpickler):
    """Builds dictionaries, arrays, numbers and text, and raises for anything else."""

    def __init__(self, content: mmap.mmap | IO[bytes], size: int) -> None:
        super().__init__(content, encoding="latin1")  # for what Python 2 wrote as text or bytes
        self._left = size  # bytes that arrays may still take: not more than the file holds

    def find_class(self, module: str, name: str, /) -> Any:
        maker = self.array_maker(module, name)
        if maker is None:
            raise _Refused(f"it calls {module}.{name}")
        return maker

    def array_maker(self, module: str, name: str) -> StandIn | None:
        """Return the stand-in for a function that builds arrays and their names; None for any other."""
        where = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        makers: dict[str, Callable[..., object]] = {
            "numpy.core.multiarray._reconstruct": lambda *_: _Array(self),
            "numpy.core.multiarray.scalar": lambda dtype, content: self.array(content, dtype, (), "C").item(),
            "numpy.core.numeric._frombuffer": self.array,
            "numpy.ndarray": _no_call,
            "numpy.dtype": _DType,
            "_codecs.encode": _encode,
            "collections.OrderedDict": dict,
            "builtins.bytes": _empty_bytes,
            "builtins.tuple": tuple,
        }
        made = makers.get(f"{where}.{name}")
        return None if made is None else StandIn(made)

    def array(self, content: object, dtype: object, shape: object, order: object) -> Array:
        """Return an array over `content`, whose length must be that of `shape`."""
        if isinstance(content, str):  # bytes of Python 2
            content = content.encode("latin1")
        if not isinstance(content, (bytes, bytearray)) or not isinstance(dtype, _DType) or order not in ("C", "F"):
            raise pickle.UnpicklingError("an array of unknown form")
        kind = dtype.numpy()
        if not isinstance(shape, tuple) or len(shape) > _MAX_AXES or not all(type(n) is int and n >= 0 for n in shape):
            raise pickle.UnpicklingError(f"an array of shape {str(shape)[:40]}")
        if math.prod(shape) * kind.itemsize != len(content):
            raise pickle.UnpicklingError(f"an array of {len(content)} bytes, wanted {list(shape)} of {kind}")
        self._left -= len(content)
        if self._left < 0:
            raise pickle.UnpicklingError("arrays larger than the file")
        return np.frombuffer(content, kind).reshape(shape, order="F" if order == "F" else "C")


def finished(value: object) -> Array | None:
    """Return the array that was read; None for anything else."""
    if isinstance(value, _Array):
        return value.values
    return value if isinstance(value, np.ndarray) else None


def _no_call(*_: object) -> object:
    raise _Refused("it calls numpy.ndarray")


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for _codecs.encode: how protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"it calls _codecs.encode for {encoding!r}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    return b""


def _plain(value: object, nesting: int = 0) -> object:
    """Return `value` with arrays in place of stand-ins and pairs, whole arrays for slices, and without name tables."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):  # a tensor inside a dictionary
        value = value[1] if isinstance(value[1], (_Array, np.ndarray)) else value
    if isinstance(value, _Array):
        array = finished(value)
        if array is None:
            raise pickle.UnpicklingError("an array without content")
        return array
    if isinstance(value, dict) and nesting < _MAX_NESTING:
        kept = {key: item for key, item in value.items() if key not in (_NAME_TABLE, _SLICES)}
        plain = {key: _plain(item, nesting + 1) for key, item in kept.items()}
        return _joined(plain, value[_SLICES]) if _SLICES in value else plain
    return value


def _joined(arrays: dict[Any, object], slices: Any) -> dict[Any, object]:
    """Return `arrays` with each array in one piece; `slices` says which pieces make which."""
    for name, entry in slices.items():
        parts = [arrays.pop(part) for part in entry["slices"]]  # a slice named twice is missing the second time
        shape = tuple(int(axis) for axis in entry["OriginShape"])
        arrays[name] = np.concatenate(parts).reshape(shape)  # type: ignore[arg-type]
    return arrays
