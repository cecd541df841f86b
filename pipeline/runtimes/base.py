"""The interface of an inference engine: open, infer, close."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.errors import BackendError

Output = npt.NDArray[np.float32]
Batch = npt.NDArray[np.float32 | np.uint8]  # normalised images, or raw pixels
Engine = TypeVar("Engine")


class Runtime(Enum):
    AUTO = "auto"  # what `default_runtime` returns; for a package, see `pipeline.packages.choice`
    OPENVINO = "openvino"
    ONNXRUNTIME = "onnxruntime"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"runtime {value!r}: expected {', '.join(each.value for each in cls)}")


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a model's input or output; None marks a free axis."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    @property
    def takes_pixels(self) -> bool:
        """Whether this input takes raw pixels, uint8, which the model normalises."""
        return self.dtype == "uint8"

    def check(self, array: npt.NDArray[np.generic], batch: int) -> None:
        """Raise BackendError unless `array` fits and holds 1 to `batch` images."""
        fits = array.ndim == len(self.shape) and all(
            want in (None, have) for want, have in zip(self.shape, array.shape, strict=True)
        )
        if array.dtype != self.dtype or not fits:
            wanted = ", ".join("N" if axis is None else str(axis) for axis in self.shape)
            raise BackendError(
                f"input {self.name!r}: expected {self.dtype} [{wanted}], got {array.dtype} {list(array.shape)}"
            )
        if not 1 <= len(array) <= batch:
            raise BackendError(f"input {self.name!r}: {len(array)} images, but the model was opened for 1 to {batch}")


@dataclass(frozen=True)
class Placement:
    """How a model is spread over the cores of one process."""

    streams: int  # requests computed at the same time
    threads: int  # cores for all of them together


def parts_of(batch_nchw: Batch, size: int) -> list[Batch]:
    """Return a batch in parts of `size` images, the last perhaps smaller: models of a fixed batch are run in a loop."""
    return [batch_nchw[start : start + size] for start in range(0, len(batch_nchw), size)]


class Backend(Protocol):
    """A loaded model. `infer` may be called from several threads; what it returns is the caller's to keep."""

    name: str
    version: str
    input: TensorSpec
    output: TensorSpec
    placement: Placement

    def infer(self, batch_nchw: Batch) -> Output:
        """Return float32 [N, classes] for [N, C, H, W] of `input.dtype`, N at most the batch it was opened for."""

    def close(self) -> None:
        """Free the model. No call of `infer` may be under way."""


class Engines(Generic[Engine]):
    """The engine's handles, one for each stream, lent to one thread at a time."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._closed = False
        self._idle: queue.SimpleQueue[Engine] = queue.SimpleQueue()
        for engine in engines:
            self._idle.put(engine)

    @contextmanager
    def borrow(self) -> Iterator[Engine]:
        """Wait for an idle engine; give it back at the end."""
        if self._closed:
            raise RuntimeError("the model was closed")
        engine = self._idle.get()
        try:
            yield engine
        finally:
            self._idle.put(engine)

    def close(self) -> None:
        self._closed = True
        self._idle = queue.SimpleQueue()
