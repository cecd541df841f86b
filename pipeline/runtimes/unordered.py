"""Reads activations as ONNX Runtime's kernels hold them, in blocks of channels: histograms do not depend on the order.

Its convolutions compute in blocks of 8 or 16 channels, those in int8 with channels last, and tensors that are outputs
are put in the model's order: of resnet50 that takes a fourteenth of a pass, in int8 a seventh, and the values are in
memory twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from pipeline.host.hardware import release_memory
from pipeline.runtimes.activations import ActivationReader, Arithmetic, Float32, Image

_BLOCK = 16  # channels, or 8; with other numbers of channels a block is filled up with zeros
# From blocks of channels to the model's order, and from channels that are last.
_REORDERS = frozenset({"ReorderOutput", "Transpose"})


class UnorderedReader:
    """A float32 model whose tensors are read with their values in any order; threads may read at once."""

    arithmetic = Arithmetic.FLOAT32

    def __init__(
        self,
        model: onnx.ModelProto | Path,
        names: Sequence[str],
        image: Image,
        *,
        ordered: Collection[str],
        threads: int,
        scratch: Path,
    ) -> None:
        """Open a model to read the tensors `names`, each call on `threads` cores.

        Args:
            model: float32, or in int8.
            image: a prepared image, of which the values are compared with those in the model's order.
            ordered: tensors of `names` that are read in the model's order.
            scratch: a file that is written and removed.
        """
        plain = ActivationReader(model, names, threads=threads, written=scratch)
        expected = _outlines(plain.read(image), names)
        plain.close()
        release_memory()
        computed = onnx.load(scratch)
        scratch.unlink()
        self._places = dict(zip(names, names, strict=True)) | _take_off_reorders(computed, {*names} - {*ordered})
        self._reader = ActivationReader(computed, [*self._places.values()], threads=threads, optimized=False)
        del computed
        if _outlines(self.read(image), names) != expected:
            self._reader.close()
            self._places = dict(zip(names, names, strict=True))
            self._reader = ActivationReader(model, names, threads=threads)

    def read(self, image: Image) -> Mapping[str, Float32]:
        """Run a prepared image [C, H, W]; return the tensors by name, float32 [1, ...], the model's input among them.

        One of convolutions may hold the values of [1, C, H, W] in any order; levels of an int8 model are uint8. The
        tensors are the thread's buffers, which its next call overwrites.
        """
        tensors = self._reader.read(image)
        return {**tensors, **{name: tensors[place] for name, place in self._places.items()}}

    def close(self) -> None:
        """Free the model."""
        self._reader.close()


def _take_off_reorders(computed: onnx.ModelProto, wanted: Collection[str]) -> dict[str, str]:
    """Remove, in place, the nodes that only put tensors of `wanted` in order.

    Returns:
        By the name of each such tensor, that of the one which holds its values in another order.
    """
    graph = computed.graph
    read = {name for node in graph.node for name in node.input} | {graph.output[0].name}
    found = {}
    for node in [node for node in graph.node if node.op_type in _REORDERS]:
        channels = next((each.i for each in node.attribute if each.name == "channels"), 1)
        is_filled = node.op_type == "Transpose" or channels % _BLOCK == 0
        if node.output[0] in wanted and node.output[0] not in read and is_filled:
            found[node.output[0]] = node.input[0]
            graph.node.remove(node)
    del graph.output[1:]
    return found


def _outlines(tensors: Mapping[str, Float32], names: Sequence[str]) -> dict[str, tuple[int, float, float]]:
    """Return what does not depend on the order of a tensor's values: their number, and the extremes."""
    return {name: (tensors[name].size, float(np.min(tensors[name])), float(np.max(tensors[name]))) for name in names}
