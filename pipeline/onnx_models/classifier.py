"""Converts any ONNX classifier to the form that quantization needs.

That form: one float32 input [N, 3, H, W], one float32 output [N, classes], with a free batch axis (or N = 1 where
the file can only be computed for one image at a time), opset 17 to 21 (a later one only where an operator needs it), no
graphs inside nodes, batch norms folded into convolutions, Gemms without alpha and beta. This module is the entry point;
the steps are in the modules that it imports.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from pipeline.errors import DataError
from pipeline.host.hardware import release_memory
from pipeline.onnx_models import (
    axes,
    branches,
    channels_last,
    clips,
    einsums,
    forms,
    layer_norms,
    opsets,
    outputs,
    pads,
    pooling,
    same_padding,
    sigmoids,
    signature,
    slices,
    token_means,
)
from pipeline.onnx_models import batch as onnx_batch
from pipeline.onnx_models import files as onnx_files
from pipeline.onnx_models.files import check, files
from pipeline.onnx_models.folding import fold
from pipeline.onnx_models.forms import cut_class
from pipeline.onnx_models.opsets import OPSET
from pipeline.onnx_models.raw_file import RawFile
from pipeline.onnx_models.run import MIXED, check_batch, relative_error, run, run_checked, run_each, run_in_chunks
from pipeline.onnx_models.scores import find_scores

__all__ = [
    "OPSET",
    "append_softmax",
    "check",
    "check_batch",
    "cut_class",
    "files",
    "load",
    "relative_error",
    "run",
    "run_checked",
    "run_each",
    "run_in_chunks",
]

_MOST_BATCH = 32  # images that a freed batch is tried with: a proof and calibration have 16


def load(path: Path, chw: tuple[int, int, int], output: str | None = None) -> onnx.ModelProto:
    """Return the classifier in `path`, normalised as the module's docstring says.

    Args:
        path: `.onnx` file; tensors kept outside it must lie in its own folder.
        chw: the input shape that the build file gives.
        output: name of the output with the scores; None where the file has one output.

    Raises:
        DataError: not an ONNX model, not a classifier of images, or one with another input shape.
    """
    model = onnx_files.read(path)
    outputs.choose_output(model, path, output)
    batch = signature.take_input(model, path, chw)
    model = opsets.raise_version(model, path)
    forms.check_inference(model, path)
    forms.to_float32(model)
    by_batch = branches.inline_branches(model, path)
    # Transposes stay until the batch is free: for one image, its axis could be confused with any other of size 1.
    model = fold(model, path, without=("TransposeOptimizer",))
    forms.name_nodes(model)
    # Only now reshapes of weights are folded away, and shapes computed from constants are known.
    signature.declare_shapes(model, chw)
    onnx_batch.keep_batch_in_squeezes(model)
    axes.name_all_axes(model, batch)
    same_padding.write_same_padding(model, path)
    onnx_batch.free_batch(model, batch)
    einsums.use_products(model)
    layer_norms.use_layer_norms(model)  # before Transposes move into the norms
    model = fold(model, path)
    release_memory()  # of the model before, for sessions
    forms.name_nodes(model)
    channels_last.pool_channels_first(model)
    pooling.use_global_pooling(model)
    token_means.give_four_axes(model)
    pooling.use_pool_over_map(model)
    pooling.use_pool_over_channels(model)
    pooling.pad_before_means(model)
    pooling.convolve_dilated_means(model)
    clips.use_clips(model)
    sigmoids.use_sigmoids(model)
    pads.fold_pads(model)
    pads.round_down(model)
    slices.drop_whole_slices(model)
    axes.count_gather_axes_from_end(model)
    axes.give_slopes_all_axes(model)
    forms.simplify_gemms(model)
    forms.drop_last_casts(model)
    if not _finish_output(model, chw) and (by_batch or not RawFile(path, output).takes_batch(_noise(chw))):
        signature.fix_batch(model)  # for one image it computes the same as the file; runtimes then loop
        _finish_output(model, chw)
    _check_freed(model, path, chw, batch)
    forms.name_nodes(model)
    return model


def _finish_output(model: onnx.ModelProto, chw: tuple[int, int, int]) -> bool:
    """Flatten and declare the output, by its shape for two images; `check_batch` raises for invalid ones.

    Returns:
        Whether each image gets the same output in a batch as alone.
    """
    images = _noise(chw)
    try:
        first, second, found = run_each(model, [images[:1], images[1:], images])
    except DataError:
        return False
    if first.ndim == 1 and first.size > 1:  # of one image, whose axis was squeezed away
        forms.flatten_output(model, first.shape)
        return _finish_output(model, chw)
    axis = _axis_of_images(first.shape, found.shape)
    if axis:
        forms.put_images_first(model, axis, found.ndim)
        return _finish_output(model, chw)
    if found.ndim < 2 or len(found) != 2 or first.shape != (1, *found.shape[1:]):
        return False
    forms.flatten_output(model, found.shape)
    classes = [size for size in found.shape[1:] if size > 1]
    if len(classes) == 1:
        signature.declare_classes(model, classes[0])
    alone = np.concatenate([first, second])
    return not relative_error(alone, found) > MIXED  # NaN is for `check_batch`


def _axis_of_images(one: tuple[int, ...], two: tuple[int, ...]) -> int | None:
    """Return the only axis whose size is the number of images, from the shapes of what one and two images give."""
    if len(one) != len(two):
        return None
    changed = [axis for axis, sizes in enumerate(zip(one, two, strict=True)) if sizes[0] != sizes[1]]
    return changed[0] if len(changed) == 1 and (one[changed[0]], two[changed[0]]) == (1, 2) else None


def _check_freed(model: onnx.ModelProto, path: Path, chw: tuple[int, int, int], batch: int | None) -> None:
    """Raise DataError where a batch of more than 1 that the file fixes still decides how many answers there are."""
    if batch in (None, 1):
        return
    for count in (1, min(batch, _MOST_BATCH) + 1):
        try:
            rows = len(run(model, _noise(chw, count)))
        except DataError:
            rows = 0
        if rows != count:
            raise DataError(
                f"{path}: its batch of {batch} cannot be freed; export it with a free batch axis, or for one image"
            )


def _noise(chw: tuple[int, int, int], count: int = 2) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(count, *chw)).astype(np.float32)


def append_softmax(model: onnx.ModelProto) -> None:
    """Append a softmax over the classes (`graph.extra_ops`) where the outputs are logits or log-probabilities."""
    graph = model.graph
    output = graph.output[0]
    if not find_scores(model).takes_softmax:
        return
    logits = f"{output.name}_logits"
    for node in graph.node:
        node.output[:] = [logits if name == output.name else name for name in node.output]
        node.input[:] = [logits if name == output.name else name for name in node.input]
    graph.node.append(onnx.helper.make_node("Softmax", [logits], [output.name], name="softmax", axis=1))
