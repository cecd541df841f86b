"""Folds batch norms and constants by ONNX Runtime, without handing it what it would not fold.

The weights of fully connected layers are nine tenths of a VGG: serialized, parsed and written with the rest, they would
be in memory four times.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx

from pipeline.errors import DataError, first_line
from pipeline.host.hardware import release_memory
from pipeline.onnx_models import forms
from pipeline.onnx_models.graphs import graphs_of, is_large, readers_of, without_weights
from pipeline.runtimes.sessions import FILE_ERRORS, RUNTIME_ERRORS, write_folded


def fold(model: onnx.ModelProto, path: Path, without: Sequence[str] = ()) -> onnx.ModelProto:
    """Return a model after ONNX Runtime's basic optimizations, which use standard operators only.

    Args:
        model: its tensors are renamed where ONNX Runtime would fail by their names.
        path: of the file, for errors.
        without: names of optimizers that are left out.

    Raises:
        DataError: ONNX Runtime does not load it, or there is no space for a temporary file.
    """
    forms.rename_fused_shapes(model)
    aside = _kept_weights(model)
    light = without_weights(model, names=aside)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "folded.onnx"
        try:
            write_folded(light.SerializeToString(), target, without)
            release_memory()
        except RUNTIME_ERRORS as err:
            reason = first_line(err)
            raise DataError(f"{path}: ONNX Runtime does not load it ({reason}); export it again") from None
        except FILE_ERRORS:
            raise DataError(
                f"{tempfile.gettempdir()}: no space left for temporary files; free some, or set TMPDIR"
            ) from None
        folded = onnx.load(target)
    inputs = [value for value in folded.graph.input if value.name not in aside]
    del folded.graph.input[:]
    folded.graph.input.extend(inputs)
    folded.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in aside)
    # ONNX Runtime declares its own domains whether they are used or not.
    standard = [opset for opset in folded.opset_import if opset.domain == ""]
    del folded.opset_import[:]
    folded.opset_import.extend(standard)
    forms.rename_fused_shapes(folded)
    return folded


def _kept_weights(model: onnx.ModelProto) -> frozenset[str]:
    """Return the large tensors that only Gemms multiply by, none of which a batch norm follows."""
    readers = readers_of(model.graph)
    inside = {
        name
        for graph in graphs_of(model.graph)
        if graph is not model.graph
        for node in graph.node
        for name in node.input
    }
    inside |= {value.name for value in (*model.graph.input, *model.graph.output)}

    def is_kept(name: str) -> bool:
        gemms = readers.get(name, [])
        after = [reader.op_type for gemm in gemms for reader in readers.get(gemm.output[0], [])]
        multiplied = all(gemm.op_type == "Gemm" and list(gemm.input).index(name) == 1 for gemm in gemms)
        return bool(gemms) and multiplied and "BatchNormalization" not in after

    large = {tensor.name for tensor in model.graph.initializer if is_large(tensor)}
    return frozenset(name for name in large - inside if is_kept(name))
