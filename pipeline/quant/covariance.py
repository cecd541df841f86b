"""The covariance of a layer's inputs, or those of its groups, accumulated batch by batch."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.linalg import blas

from pipeline.quant.bfloat16 import Values

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_ROWS = 1024  # columns of inputs multiplied at a time: fewer are limited by memory bandwidth, more take more memory
_SMALL = 64  # inputs of a group
_BLOCK = 256  # inputs whose products with those before them are computed at a time


_local = threading.local()


def _joined(pieces: Sequence[Values]) -> Float32:
    """Return the rows of all pieces as float32, in a buffer of the thread that the next call overwrites.

    Pages of new memory cost more time than the rows.
    """
    height, width = sum(map(len, pieces)), pieces[0].shape[1]
    buffer: Float32 | None = getattr(_local, "buffer", None)
    if buffer is None or buffer.size < height * width:
        buffer = _local.buffer = np.empty(height * width, np.float32)
    joined = buffer[: height * width].reshape(height, width)
    start = 0
    for piece in pieces:
        rows = joined[start : start + len(piece)]
        if piece.dtype == np.uint16:
            np.left_shift(piece, np.uint32(16), out=rows.view(np.uint32), dtype=np.uint32)
        else:
            rows[...] = piece
        start += len(piece)
    return joined


class Covariance:
    """The covariance of a layer's inputs, accumulated batch by batch."""

    def __init__(self, inputs: int) -> None:
        self._products = np.zeros((inputs, inputs), np.float32)
        self._sums = np.zeros(inputs, np.float64)
        self._shift: Float32 | None = None  # near the means: sums of large squares would lose the variances
        self._pending: list[Values] = []
        self._count = 0

    def add(self, columns: Values) -> None:
        """Add float32 [n, inputs], or bfloat16 as uint16; they are kept until there are enough for a product."""
        self._pending.append(columns)
        if sum(map(len, self._pending)) >= min(_ROWS, len(self._sums)):
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            columns = _joined(self._pending)
            self._pending.clear()
            if self._shift is None:
                self._shift = columns.mean(axis=0)
            columns -= self._shift
            # In place, the lower triangle: numpy's product of 4608 columns takes 85 MB and twice the time. BLAS reads
            # columns first, so that our lower triangle is the upper one of the transpose.
            blas.ssyrk(1.0, columns.T, beta=1.0, c=self._products.T, overwrite_c=True)
            # What is left of the means is small, so that float32 will do; summing as float64 takes ten times as long.
            self._sums += np.ones(len(columns), np.float32) @ columns
            self._count += len(columns)

    def means(self) -> Float64:
        """Return float64 [inputs]."""
        return self._centred_means() + (0.0 if self._shift is None else self._shift)

    def _centred_means(self) -> Float64:
        self._flush()
        return self._sums / self._count

    def result(self) -> Float32:
        """Return float32 [inputs, inputs] and release it: nothing can be added afterwards."""
        means = self._centred_means().astype(np.float32)
        _local.buffer = None  # 38 MB of the widest
        covariance, self._products = self._products, np.zeros((0, 0), np.float32)
        for start in range(0, len(means), _BLOCK):
            end = start + _BLOCK
            covariance[start:end, :end] /= np.float32(self._count)
            covariance[start:end, :end] -= np.outer(means[start:end], means[:end])
        for start in range(0, len(means), _BLOCK):
            end = start + _BLOCK
            corner = covariance[start:end, start:end]
            corner[...] = np.tril(corner) + np.tril(corner, -1).T
            covariance[start:end, end:] = covariance[end:, start:end].T
        return covariance


class GroupCovariance:
    """The covariances of the inputs of each group of a convolution, summed over columns as they come."""

    def __init__(self, groups: int, inputs: int) -> None:
        """Start with nothing; `inputs` are those of a group."""
        self._products = np.zeros((groups, inputs, inputs), np.float32)
        self._sums = np.zeros((groups, 1, inputs), np.float64)
        self._shift: Float32 | None = None  # near the means, as in `Covariance`
        self._pending: list[Values] = []
        self._count = 0

    def add(self, columns: Values) -> None:
        """Add float32 [n, groups * inputs], or bfloat16 as uint16."""
        self._pending.append(columns)
        # Small products are not worth the threads that BLAS would share longer ones among.
        if self._products.shape[2] <= _SMALL or sum(map(len, self._pending)) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            groups, inputs = self._products.shape[:2]
            rows = _joined(self._pending).reshape(-1, groups, inputs)
            columns = np.ascontiguousarray(rows.transpose(1, 0, 2))  # or the product below is no BLAS one
            if self._shift is None:
                self._shift = columns.mean(axis=1, keepdims=True)
            columns = columns - self._shift
            self._products += columns.transpose(0, 2, 1) @ columns
            self._sums += columns.sum(axis=1, dtype=np.float64, keepdims=True)
            self._count += columns.shape[1]
            self._pending.clear()

    def means(self) -> Float64:
        """Return float64 [groups, inputs]."""
        self._flush()
        centred: Float64 = (self._sums / self._count)[:, 0]
        return centred if self._shift is None else centred + self._shift[:, 0]

    def result(self) -> Float32:
        """Return float32 [groups, inputs, inputs]."""
        self._flush()
        means = (self._sums / self._count).astype(np.float32)
        found: Float32 = self._products / np.float32(self._count) - means.transpose(0, 2, 1) * means
        return found
