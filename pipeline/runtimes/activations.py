"""Reads the inner tensors of a float32 model, one image at a time, into buffers that each thread reuses."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from pipeline.runtimes.sessions import serialize

Float32 = npt.NDArray[np.float32]
Halves = npt.NDArray[np.uint16]  # bfloat16 by its bits, the upper half of a float32
Image = npt.NDArray[np.float32 | np.uint8]  # [C, H, W]

onnxruntime.set_default_logger_severity(4)  # some warnings ignore the setting of a session


class Arithmetic(Enum):
    """What the activations of a float32 model are computed in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Reader(Protocol):
    """Gives the tensors of one image by name; threads may read at once."""

    @property
    def arithmetic(self) -> Arithmetic: ...

    def read(self, image: Image) -> Mapping[str, Float32 | Halves]:
        """Run a prepared image [C, H, W]; the tensors are the thread's buffers, which its next call overwrites."""

    def close(self) -> None:
        """Free the model; no thread reads any more."""


class ActivationReader:
    """An ONNX Runtime session with chosen activations as outputs; threads may read at once.

    If ONNX Runtime allocates the outputs of each pass, page faults take a fifth of the pass.
    """

    arithmetic = Arithmetic.FLOAT32

    def __init__(
        self,
        model: onnx.ModelProto | Path,
        names: Sequence[str] | None,
        *,
        threads: int,
        optimized: bool = True,
        written: Path | None = None,
    ) -> None:
        """Open a model (unchanged when this returns) to read the tensors `names`, each call on `threads` cores.

        Without names, its output is read.

        Of a file, no more is kept in memory than the session needs: half of what a model that stays loaded takes.

        Args:
            optimized: False computes each node of the model as it stands.
            written: a file for the model as the session computes it.
        """
        if isinstance(model, Path):
            model = onnx.load(model)
        self._input = model.graph.input[0].name
        pixels = model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        self._dtype: type[np.uint8 | np.float32] = np.uint8 if pixels else np.float32
        self.output = model.graph.output[0].name
        wanted = [self.output] if names is None else names
        self._fetched = [name for name in dict.fromkeys(wanted) if name != self._input]
        serialized, tensors = serialize(model, self._fetched)
        del model
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if not optimized:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if written is not None:
            options.optimized_model_filepath = str(written)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_external_initializers(list(tensors), list(tensors.values()))
        self._session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
        self._local = threading.local()

    def read(self, image: Image) -> Mapping[str, Float32]:
        """Run a prepared image [C, H, W]; return the tensors by name, float32 [1, ...], the model's input among them.

        Of an int8 model, those in levels are uint8. They are the thread's buffers, which its next call overwrites.
        """
        batch: Any = image[None].astype(self._dtype, copy=False)
        if not self._fetched:
            return {self._input: batch}
        buffers: dict[str, Float32] | None = getattr(self._local, "buffers", None)
        if buffers is None:
            made = self._session.run(self._fetched, {self._input: batch})
            buffers = self._local.buffers = dict(zip(self._fetched, made, strict=True))
        else:
            self._run_into(buffers, batch)
        return {self._input: batch, **buffers}

    def close(self) -> None:
        """Free the model."""
        del self._session

    def _run_into(self, buffers: Mapping[str, Float32], batch: Float32) -> None:
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._input, batch)
        for name, buffer in buffers.items():
            binding.bind_output(name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)
        self._session.run_with_iobinding(binding)
