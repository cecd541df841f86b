"""Runs a loaded classifier in float32, and checks what every classifier must satisfy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from pipeline.errors import DataError, in_a_line
from pipeline.runtimes.sessions import RUNTIME_ERRORS, open_session

Float32 = npt.NDArray[np.float32]
_CHUNK = 4
MIXED = 1e-3  # of the largest output: beyond it, an image's answers depend on the others of its batch


def run(model: onnx.ModelProto, batch_nchw: Float32) -> Float32:
    """Return the model's output for one batch, computed in float32: [N, C, H, W] -> [N, classes].

    Raises:
        DataError: the model cannot take this batch.
    """
    return run_each(model, [batch_nchw])[0]


def run_each(model: onnx.ModelProto, batches_nchw: Sequence[Float32], *, optimized: bool = True) -> list[Float32]:
    """Return `run` of every batch; the model is loaded once. A model with a batch of 1 gets one image at a time.

    Without `optimized` each node is computed as it stands: the same values, but for float32 rounding.
    """
    outputs: list[Float32] = []
    try:
        session = open_session(model, optimized=optimized, prepacked=False)
        name, alone = model.graph.input[0].name, takes_one_image(model)
        for batch_nchw in batches_nchw:
            parts = np.split(batch_nchw, len(batch_nchw)) if alone else [batch_nchw]
            made = [session.run(None, {name: part})[0] for part in parts]
            outputs.append(made[0] if len(made) == 1 else np.concatenate(made))
    except RUNTIME_ERRORS as err:
        size = len(batches_nchw[len(outputs)])
        raise DataError(f"model does not take a batch of {size}: {in_a_line(err)}") from None
    return outputs


def takes_one_image(model: onnx.ModelProto) -> bool:
    """Tell whether the model's batch is fixed at 1: whoever runs it has to loop."""
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    return bool(dim.HasField("dim_value")) and dim.dim_value == 1


def run_in_chunks(model: onnx.ModelProto, images_nchw: Float32, *, optimized: bool = True) -> Float32:
    """Return `run` of any number of images, a few at a time; `optimized` as for `run_each`."""
    chunks = [images_nchw[start : start + _CHUNK] for start in range(0, len(images_nchw), _CHUNK)]
    return np.concatenate(run_each(model, chunks, optimized=optimized))


def check_batch(model: onnx.ModelProto, batch_nchw: Float32, path: Path) -> int:
    """Check that images get the same answers in a batch as alone; return the number of classes.

    Raises:
        DataError: the batch axis is not free, the output is not [N, classes], or holds NaN or Inf.
    """
    try:
        *single, together = run_each(model, [*(image[None] for image in batch_nchw), batch_nchw])
    except DataError as err:
        raise DataError(f"{path}: {err}; export it with a free batch axis, or for one image") from None
    return _check_answers(model, batch_nchw, single, together, path)


def run_checked(model: onnx.ModelProto, images_nchw: Float32, path: Path) -> tuple[Float32, int]:
    """Return `run_in_chunks`, and `check_batch` of the first chunk; the model is loaded once.

    Raises:
        DataError: as `check_batch`.
    """
    first = images_nchw[:_CHUNK]
    chunks = [images_nchw[start : start + _CHUNK] for start in range(0, len(images_nchw), _CHUNK)]
    found = run_each(model, [*chunks, *(image[None] for image in first)])
    together, single = found[: len(chunks)], found[len(chunks) :]
    classes = _check_answers(model, first, single, together[0], path)
    return np.concatenate(together), classes


def _check_answers(
    model: onnx.ModelProto, batch_nchw: Float32, single: Sequence[Float32], together: Float32, path: Path
) -> int:
    if together.ndim != 2 or len(together) != len(batch_nchw) or together.shape[1] < 2:
        found = f"output is {list(together.shape)} for {len(batch_nchw)} images"
        raise DataError(f"{path}: {found}; wanted [N, classes]{_shape_advice(together.shape)}")
    if any(alone.shape != together[:1].shape for alone in single):
        raise DataError(
            f"{path}: gives {list(single[0].shape)} for one image and {list(together.shape)} for {len(batch_nchw)}; "
            "export it with a free batch axis, or for one image"
        )
    if not np.isfinite(together).all():
        raise DataError(f"{path}: output holds NaN or Inf on real images; {_finite_advice(model)}")
    if relative_error(np.concatenate(single), together) > MIXED:
        raise DataError(
            f"{path}: images in a batch get other answers than alone; export it after model.eval(), or for one image "
            "(a batch of 1), which is kept"
        )
    return int(together.shape[1])


def _shape_advice(shape: tuple[int, ...]) -> str:
    """Return advice on an output that is not [N, classes]."""
    if len(shape) == 1 or shape[1:] == (1,):
        return (
            ": a network with one score tells two classes apart by its sign or by a sigmoid; export it with a score "
            "for each class, such as torch.cat([-x, x], 1) / 2 of the logit x, whose softmax is that sigmoid"
        )
    if len(shape) == 4:
        return ": only classifiers are taken, not networks that give a map, as segmentation and detection do"
    return ": export the network so that it ends in one score for each class"


def _finite_advice(model: onnx.ModelProto) -> str:
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and np.isnan(values).any():
            return f"the weights {tensor.name} hold NaN: take a checkpoint from before the training diverged"
    return "check the weights and the preprocessing"


def relative_error(reference: Float32, other: Float32) -> float:
    """Return the largest difference as a share of the largest reference value."""
    return float(np.abs(reference - other).max() / max(float(np.abs(reference).max()), 1e-12))
