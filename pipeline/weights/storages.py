"""The storages of a PyTorch checkpoint, and tensors as views of them, whose sizes and strides come from the file."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import torch
from torch import Tensor


class Storage:
    """The bytes of a storage and the type of its elements."""

    __slots__ = ("content", "dtype")

    def __init__(self, content: Tensor, dtype: torch.dtype) -> None:
        self.content, self.dtype = content, dtype  # content: uint8 [bytes]


def view(storage: object, offset: object, size: object, stride: object, *_: object) -> Tensor:
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return view_as(storage, offset, size, stride, None, None, storage.dtype)


def view_as(
    storage: object, offset: object, size: object, stride: object, _: object, __: object, dtype: object, *___: object
) -> Tensor:
    """Return a tensor as a view of its storage.

    Raises:
        pickle.UnpicklingError: it would reach beyond the storage.
    """
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a tensor of unknown form")
    if not _are_lengths(size) or not _are_lengths(stride) or not _are_lengths((offset,)):
        raise pickle.UnpicklingError("a tensor of unknown shape")
    assert isinstance(size, Sequence) and isinstance(stride, Sequence) and isinstance(offset, int)
    elements = storage.content.numel() // dtype.itemsize
    last = offset + sum((axis - 1) * step for axis, step in zip(size, stride, strict=True))
    if 0 not in size and last >= elements:
        raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
    if 0 in size:
        return torch.empty(tuple(size), dtype=dtype)
    values = storage.content[: elements * dtype.itemsize].view(dtype)
    return values.as_strided(tuple(size), tuple(stride), offset)


def _are_lengths(value: object) -> bool:
    return isinstance(value, tuple | list) and all(type(axis) is int and axis >= 0 for axis in value)
