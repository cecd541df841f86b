"""Runs an ONNX file unchanged, without converter and optimizer.

ONNX Runtime runs the file itself with all optimizations off; where it cannot load it, onnx's reference evaluator does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from pipeline.errors import DataError, first_line
from pipeline.host.hardware import release_memory
from pipeline.onnx_models.files import structure as onnx_structure
from pipeline.onnx_models.files import with_tensors_beside
from pipeline.onnx_models.graphs import Array, makers_of
from pipeline.onnx_models.input_axes import image_sizes
from pipeline.onnx_models.label_outputs import unzipped, zipped_labels
from pipeline.onnx_models.pixel_inputs import LUMINANCE
from pipeline.onnx_models.signature import channels_read, has_channels_last
from pipeline.runtimes.sessions import FILE_ERRORS, RUNTIME_ERRORS, open_session

Float32 = npt.NDArray[np.float32]
_LOAD_ERRORS = (*RUNTIME_ERRORS, *FILE_ERRORS)
_HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_CHUNK = 4  # images at a time, where the file's batch is free: without optimizations, tensors do not share memory
_REFERENCE_IMAGES = 4  # limit for the reference evaluator, which is slow
_MOST_BYTES = 1 << 30  # of an input: a file may fix any batch
_MOST_TENSORS = 4000  # limit of tensors compared to find the operator that changed


class RawFile:
    """A model file, run unchanged."""

    def __init__(self, path: Path, output: str | None) -> None:
        """Open the file.

        Args:
            output: name of the output with the scores; None where there is one.

        Raises:
            DataError: neither ONNX Runtime nor onnx's reference evaluator loads it.
        """
        self.path = path
        runnable = with_tensors_beside(path)
        structure = onnx.load(path, load_external_data=False)
        self.output = output or _only_output(structure, path)
        self.is_half = _is_half(structure)
        constants = {tensor.name for tensor in structure.graph.initializer}
        self._labels = zipped_labels(structure, self.output)
        self._inputs = [_copied(value) for value in structure.graph.input if value.name not in constants]
        self._image, self._last, self._grey, self.batch = _image_input(structure, self._inputs)
        del structure  # a session takes its memory again
        release_memory()
        self._session: Any = None  # of ONNX Runtime, where it loads the file
        self._reference: ReferenceEvaluator | None = None
        self.runner = "ONNX Runtime"
        try:
            self._session = open_session(str(runnable), optimized=False, prepacked=False)
        except _LOAD_ERRORS as err:
            self.runner = "onnx's reference evaluator"
            reason = first_line(err)
            try:
                self._reference = ReferenceEvaluator(onnx.load(runnable))
            except Exception as reference_err:  # it raises whatever its operators do
                raise DataError(
                    f"neither ONNX Runtime ({reason}) nor onnx's reference evaluator "
                    f"({first_line(reference_err)}) loads the file as it is"
                ) from None

    def close(self) -> None:
        """Release what running the file took; `first_change` can still be asked."""
        self._session = self._reference = None

    @property
    def most_images(self) -> int | None:
        """The number of images that it can compute in reasonable time; None: any number."""
        return None if self._reference is None else _REFERENCE_IMAGES

    def answers(self, images_nchw: Float32) -> Float32:
        """Return float32 [images, classes], whatever shape and type the file's output has.

        Raises:
            DataError: it cannot be run.
        """
        size = self.batch or (1 if self._reference is not None else _CHUNK)
        found = []
        for start in range(0, len(images_nchw), size):
            chunk = images_nchw[start : start + size]
            self._check_size(size * chunk[0].nbytes)
            padded = np.concatenate([chunk, np.repeat(chunk[-1:], (self.batch or len(chunk)) - len(chunk), axis=0)])
            outputs = self._outputs(padded)
            found.append(outputs[: len(chunk)])
        return np.concatenate(found)

    def representable(self, images_nchw: Float32) -> Float32:
        """Return images that its input holds exactly: whole numbers, and three channels alike, where it is of such."""
        kind = next(value.type.tensor_type.elem_type for value in self._inputs if value.name == self._image)
        if np.issubdtype(onnx.helper.tensor_dtype_to_np_dtype(kind), np.integer):
            images = _luminance(images_nchw).repeat(3, axis=1) if self._grey else images_nchw
            return np.rint(images)
        return images_nchw

    def takes_batch(self, images_nchw: Float32) -> bool:
        """Tell whether the file runs on these images in one batch, with an answer for each."""
        if self.batch is not None:
            return self.batch > 1
        try:
            outputs = self._run([self.output], self.feed(images_nchw))[0]
        except DataError:
            return False
        rows = len(outputs) if self._labels else next(iter(np.asarray(outputs).shape), 0)
        return bool(rows == len(images_nchw))

    def _outputs(self, images_nchw: Float32) -> Float32:
        """Return float32 [images, classes]; one image at a time where the file takes no more."""
        is_fixed = self.batch is not None or len(images_nchw) == 1
        try:
            given = self._run([self.output], self.feed(images_nchw))[0]
            outputs = np.asarray(given, np.float32) if self._labels is None else unzipped(given, self._labels)
        except DataError:
            if is_fixed:
                raise
            outputs = np.zeros(0, np.float32)
        # As many classes as images: [classes, N] cannot be told from [N, classes].
        is_square = outputs.ndim == 2 and outputs.shape == (len(images_nchw), len(images_nchw))
        if is_fixed or (outputs.shape[:1] == (len(images_nchw),) and not is_square):
            return outputs.reshape(len(images_nchw), -1)
        return np.concatenate([self._outputs(image[None]) for image in images_nchw])

    def feed(self, batch_nchw: Float32) -> dict[str, Array]:
        """Return the file's inputs for a batch, in its own type and layout; other inputs are zero."""
        feed: dict[str, Array] = {}
        for value in self._inputs:
            kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            if value.name == self._image:
                images = _luminance(batch_nchw) if self._grey else batch_nchw
                layout = images.transpose(0, 2, 3, 1) if self._last else images
                axes = len(value.type.tensor_type.shape.dim)
                whole = np.rint(layout) if np.issubdtype(kind, np.integer) else layout
                feed[value.name] = np.ascontiguousarray(_with_axes(whole, axes)).astype(kind)
            else:
                dims = [max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim]
                self._check_size(math.prod(dims) * kind.itemsize)
                feed[value.name] = np.zeros(dims, kind)
        return feed

    def _check_size(self, size: int) -> None:
        if size > _MOST_BYTES:
            raise DataError(
                f"its input takes {size} bytes with the sizes that it fixes, more than is tried (a batch of 1 will do)"
            )

    def _run(self, outputs: list[str], feed: dict[str, Array]) -> list[Any]:
        try:
            if self._session is not None:
                known = {value.name for value in self._session.get_inputs()}
                return list(self._session.run(outputs, {name: v for name, v in feed.items() if name in known}))
            assert self._reference is not None
            return list(self._reference.run(outputs, feed))
        except Exception as err:  # the reference evaluator raises whatever its operators do
            raise DataError(f"{self.runner} does not run the file as it is ({first_line(err)})") from None

    def first_change(self, model: onnx.ModelProto, image_chw: Float32, share: float) -> str | None:
        """Return the first operator of the file whose result has the same name in the model and another value.

        Args:
            share: of a result's largest value, up to which a difference is rounding.

        Returns:
            None: there is none, or the file cannot be run this way.
        """
        try:
            own = onnx.load(self.path)
        except Exception:  # tensors behind links, which onnx does not follow
            return None
        makers = makers_of(own.graph)
        common = [name for name in makers if name in {each for node in model.graph.node for each in node.output}]
        common = common[:_MOST_TENSORS]
        batch = np.repeat(image_chw[None], self.batch or 1, axis=0)
        try:
            expected = _outputs(own, common, self.feed(batch), optimized=False)
            found = _outputs(model, common, {model.graph.input[0].name: batch}, optimized=True)
        except _LOAD_ERRORS:
            return None
        for name, before, after in zip(common, expected, found, strict=True):
            if before.shape != after.shape or before.dtype.kind != "f":
                continue
            reference = before.astype(np.float64)
            largest = float(np.abs(reference).max(initial=0.0))
            if not np.abs(reference - after.astype(np.float64)).max(initial=0.0) <= share * max(largest, 1e-12):
                return f"{makers[name].op_type} (node {makers[name].name!r}, output {name!r})"
        return None


def _outputs(model: onnx.ModelProto, names: Sequence[str], feed: dict[str, Array], *, optimized: bool) -> list[Array]:
    """Return some tensors of a model for a feed."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(probed, optimized=optimized)
    return list(session.run(list(names), feed))


def _only_output(model: onnx.ModelProto, path: Path) -> str:
    """Return the output of a file with one, or with others that are labels."""
    graph = model.graph if len(model.graph.output) == 1 else onnx_structure(path).graph
    return str(graph.output[0].name)


def _copied(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """Return a copy: a part of a model keeps all of it in memory."""
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    return copy


def _is_half(model: onnx.ModelProto) -> bool:
    tensors = {tensor.data_type for tensor in model.graph.initializer}
    values = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.value_info)}
    casts = {attribute.i for node in model.graph.node if node.op_type == "Cast" for attribute in node.attribute}
    return bool((tensors | values | casts).intersection(_HALF_TYPES))


def _image_input(model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto]) -> tuple[str, bool, bool, int | None]:
    """Return the image input's name, whether its channels are last, whether it is grey, and its batch if fixed."""
    read = {name for node in model.graph.node for name in node.input}
    image = next((value for value in inputs if value.name in read), inputs[0])
    dims = image_sizes(model.graph, image) or [None] * 4
    last = has_channels_last(model.graph, image.name, dims)
    grey = (dims[3 if last else 1] or channels_read(model.graph, image.name)) == 1
    return image.name, last, grey, dims[0]


def _luminance(images_nchw: Float32) -> Float32:
    """Return grey images [images, 1, height, width]."""
    return np.tensordot(images_nchw, np.array(LUMINANCE, np.float32), (1, 0))[:, None]


def _with_axes(images: Float32, axes: int) -> Float32:
    """Return images in the axes of a file's input: four, or three for one image or grey ones, or two for rows."""
    if axes == 3:
        return images[0] if len(images) == 1 else images[:, 0]
    return images.reshape(len(images), -1) if axes == 2 else images
