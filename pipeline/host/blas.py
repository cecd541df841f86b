"""The BLAS of numpy: its number of threads, and two routines of it that numpy does not offer."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt

# Of OpenBLAS as numpy's packages carry it (from 2.0 on, before, as a distribution builds it).
_PREFIXES = (("scipy_", "64_"), ("", "64_"), ("scipy_", ""), ("", ""))
_ROW_MAJOR, _LOWER, _TRANSPOSED = 101, 122, 112  # of the C interface


@contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Let numpy's matrix products take `count` threads inside, where that can be set; the whole process's.

    For code that has threads of its own: between two products, OpenBLAS's threads wait busily, up to 20 ms each time,
    and on a busy machine for longer. Rounding resnet18 took twice the CPU seconds with two of them.
    """
    library = _openblas()
    if library is None:
        yield
        return
    read, write = library
    before = read()
    write(count)
    try:
        yield
    finally:
        write(before)


def add_gram(matrix: npt.NDArray[np.float32], rows: npt.NDArray[np.float32]) -> bool:
    """Add rows^T rows to the lower triangle of a matrix, in place (SSYRK); False where the routine is not found.

    numpy computes no part of a product in place: of 4608 columns its result takes 85 MB, and twice the time.

    Args:
        matrix: float32 [n, n], C-contiguous; above the diagonal nothing changes.
        rows: float32 [k, n], C-contiguous.
    """
    found = _routine("cblas_ssyrk64_")
    if found is None or not (_is_plain(matrix) and _is_plain(rows)):
        return False
    count, size = rows.shape
    one, long = ctypes.c_float(1.0), ctypes.c_int64
    found(
        *(_ROW_MAJOR, _LOWER, _TRANSPOSED, long(size), long(count), one),
        *(_address(rows), long(max(size, 1)), one, _address(matrix), long(max(size, 1))),
    )
    return True


def factor_lower(matrix: npt.NDArray[np.float32]) -> bool:
    """Turn the lower triangle of a positive definite matrix into its Cholesky factor, in place (SPOTRF).

    numpy's own function takes twice the memory of the matrix in addition.

    Args:
        matrix: float32 [n, n], C-contiguous; above the diagonal nothing is read or changed.

    Returns:
        False where the routine is not found, and nothing was done.

    Raises:
        LinAlgError: it is not positive definite.
    """
    found = _routine("spotrf_64_")
    if found is None or not _is_plain(matrix):
        return False
    size, info = ctypes.c_int64(len(matrix)), ctypes.c_int64(0)
    # LAPACK reads columns first, so that our lower triangle is its upper one. The last 1 is the length of the string.
    found(b"U", ctypes.byref(size), _address(matrix), ctypes.byref(size), ctypes.byref(info), ctypes.c_size_t(1))
    if info.value:
        raise np.linalg.LinAlgError("Matrix is not positive definite")
    return True


def _is_plain(array: npt.NDArray[np.float32]) -> bool:
    return array.dtype == np.float32 and array.flags.c_contiguous and array.flags.aligned


def _address(array: npt.NDArray[np.float32]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@lru_cache(maxsize=4)
def _routine(name: str) -> Callable[..., Any] | None:
    """Return a routine of OpenBLAS with integers of 64 bits; None where numpy has another BLAS."""
    library = _library()
    for prefix in ("scipy_", ""):
        found = getattr(library, prefix + name, None)
        if found is not None:
            found.restype = None
            return cast("Callable[..., Any]", found)
    return None


def _library() -> ctypes.CDLL | None:
    core = getattr(np, "_core", None) or np.core
    try:
        return ctypes.CDLL(core._multiarray_umath.__file__)  # symbols of what it is linked with are found through it
    except (AttributeError, OSError, TypeError):
        return None


@lru_cache(maxsize=1)
def _openblas() -> tuple[Callable[[], int], Callable[[int], Any]] | None:
    """Return the functions that read and set the number of threads; None where numpy has another BLAS."""
    library = _library()
    for prefix, suffix in _PREFIXES:
        try:
            read = getattr(library, f"{prefix}openblas_get_num_threads{suffix}")
            write = getattr(library, f"{prefix}openblas_set_num_threads{suffix}")
        except AttributeError:
            continue
        read.restype, write.argtypes, write.restype = ctypes.c_int, [ctypes.c_int], None
        return read, write
    return None
