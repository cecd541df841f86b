"""The number of threads of the BLAS that numpy computes matrix products with."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

# Of OpenBLAS as numpy's packages carry it (from 2.0 on, before, as a distribution builds it).
_PREFIXES = (("scipy_", "64_"), ("", "64_"), ("scipy_", ""), ("", ""))


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


@lru_cache(maxsize=1)
def _openblas() -> tuple[Callable[[], int], Callable[[int], Any]] | None:
    """Return the functions that read and set the number of threads; None where numpy has another BLAS."""
    core = getattr(np, "_core", None) or np.core
    try:
        library = ctypes.CDLL(core._multiarray_umath.__file__)  # symbols of what it is linked with are found through it
    except (AttributeError, OSError, TypeError):
        return None
    for prefix, suffix in _PREFIXES:
        try:
            read = getattr(library, f"{prefix}openblas_get_num_threads{suffix}")
            write = getattr(library, f"{prefix}openblas_set_num_threads{suffix}")
        except AttributeError:
            continue
        read.restype, write.argtypes, write.restype = ctypes.c_int, [ctypes.c_int], None
        return read, write
    return None
