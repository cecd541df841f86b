"""Whole Keras models, `.keras` and `.h5`, converted to ONNX by tf2onnx.

A model's file is a description of its layers, in JSON, and their weights. It may hold Python code too (Lambda layers),
which is never run here: such a file is refused. TensorFlow is large, and runs in a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import mmap
import os
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError, DataError, in_a_line
from pipeline.host import isolated
from pipeline.host.extras import install_command
from pipeline.weights.file_kinds import FileKind, kind_of

_DESCRIPTION = "config.json"  # of a .keras file, which is a zip
_ATTRIBUTE = "model_config"  # the same in an .h5 file
_TRAINING = "compile_config"  # loss and metrics, which are not loaded
_CODE = ("Lambda", "__lambda__")  # classes whose configuration holds the bytes of a Python function
_OPSET = 13  # the lowest with per-channel DequantizeLinear
_SECONDS = 1800.0
_LARGEST = 64 << 20  # bytes of a description; those of networks have some hundred kB
_WHOLE = "build the network in Keras, load the weights, and give what model.save('model.keras') writes"
_ELSEWHERE = "or convert it elsewhere with tf2onnx and give the .onnx file"


def is_keras_model(path: Path) -> bool:
    """Tell whether a file is of Keras, by its content: a zip of a description and weights, or HDF5."""
    try:
        return path.is_file() and kind_of(path) in (FileKind.KERAS, FileKind.HDF5)
    except OSError:
        return False


def check(path: Path) -> None:
    """Find what would stop a conversion, before any work; TensorFlow is not imported.

    Raises:
        ConfigError: it is no file of Keras, holds weights alone, code, or layers of other packages than Keras, or
            tf2onnx and TensorFlow are not installed.
    """
    if not is_keras_model(path):
        raise ConfigError(f"{path}: expected a whole Keras model, .keras or .h5")
    is_zip = kind_of(path) is FileKind.KERAS
    if not (_is_in_zip(path) if is_zip else _is_in_hdf5(path)):
        raise ConfigError(f"{path}: holds weights alone; {_WHOLE}")
    if is_zip:
        _check_layers(path, _read_zip(path))
    missing = [name for name in ("tf2onnx", "tensorflow") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{path}: is a Keras model; converting it needs {' and '.join(missing)}; run: {install_command('keras')} "
            f"({_ELSEWHERE})"
        )
    if not is_zip:
        _check_layers(path, _read_hdf5(path))


def _is_in_zip(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return _DESCRIPTION in archive.namelist()


def _is_in_hdf5(path: Path) -> bool:
    """Tell whether the name of the attribute stands in the file: h5py comes with TensorFlow only."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(_ATTRIBUTE.encode()) >= 0


def _read_zip(path: Path) -> str | bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            if (size := archive.getinfo(_DESCRIPTION).file_size) > _LARGEST:
                raise ConfigError(f"{path}: its description of the layers has {size >> 20} MiB; wanted a Keras model")
            return archive.read(_DESCRIPTION)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError) as err:  # RuntimeError: encrypted
        raise ConfigError(f"{path}: cannot be unpacked ({in_a_line(err)}); download it again") from err


def _read_hdf5(path: Path) -> str | bytes:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            found = file.attrs.get(_ATTRIBUTE)
    except (OSError, RuntimeError, KeyError, ValueError) as err:
        raise ConfigError(f"{path}: cannot be read ({in_a_line(err)}); download it again") from err
    if not isinstance(found, str | bytes):
        raise ConfigError(f"{path}: holds weights alone; {_WHOLE}")
    return found


def _check_layers(path: Path, description: str | bytes) -> None:
    """Refuse code, and layers that only another package can make.

    Raises:
        ConfigError: there are such, or the description is no JSON.
    """
    try:
        layers = list(_objects_in(json.loads(description)))
    except (ValueError, RecursionError) as err:
        raise ConfigError(
            f"{path}: its description of the layers is damaged ({in_a_line(err)}); save it again"
        ) from None
    for layer in layers:
        kind, module = layer["class_name"], layer.get("module")
        settings = layer.get("config")
        name = settings.get("name") if isinstance(settings, dict) else None
        shown = f"layer {name!r} of class {kind}" if name else f"an object of class {kind}"
        if kind in _CODE:
            raise ConfigError(
                f"{path}: has {shown}, Python code that is not run here; save the model with a layer of Keras in its "
                f"place (Rescaling, Normalization), {_ELSEWHERE}"
            )
        if isinstance(module, str) and module.partition(".")[0] not in ("keras", "builtins"):
            raise ConfigError(f"{path}: has {shown} of {module}, whose code is not in the file; {_ELSEWHERE[3:]}")


def _objects_in(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object that a description tells to make, layers within layers too; nothing of training."""
    if isinstance(value, dict):
        if isinstance(value.get("class_name"), str):
            yield value
        for key, inner in value.items():
            if key != _TRAINING:
                yield from _objects_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _objects_in(inner)


def to_onnx(
    path: Path, out: Path, hw: tuple[int, int] | None = None, images_nchw: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32] | None:
    """Convert a model; the order of its axes stays.

    Args:
        out: the ONNX file to write; its input is named as Keras's.
        hw: height and width, px, where the model leaves them open; None: they stay open.
        images_nchw: float32 [N, 3, H, W], to answer beside it; None: none.

    Returns:
        Keras's own output for the images, float32 [N, classes]; None where the model has several, or takes images of
        another shape, or none were given.

    Raises:
        ConfigError: as `check`.
        DataError: Keras cannot load it, or tf2onnx cannot convert it; the reason is given.
    """
    check(path)
    with tempfile.TemporaryDirectory(prefix="keras-") as folder:
        written = Path(folder) / "model.onnx"
        advice = f" on this file; {_ELSEWHERE[3:]}"
        answers: npt.NDArray[np.float32] | None = isolated.call_on_file(
            path, "TensorFlow", advice, _convert, str(path), str(written), hw, images_nchw, seconds=_SECONDS
        )
        shutil.copyfile(written, out)
    return answers


def _convert(
    path: str, out: str, hw: tuple[int, int] | None, images_nchw: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.float32] | None:
    """Write the ONNX file; in a process of its own.

    Raises:
        DataError: what Keras or tf2onnx says of a failure.
    """
    # Read when they are imported; another backend of Keras makes no graphs that tf2onnx reads.
    os.environ.update(KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _load(path)
        if len(model.inputs) != 1 or len(model.inputs[0].shape) != 4:
            shapes = ", ".join(str(list(each.shape)) for each in model.inputs)
            raise DataError(f"has inputs of {shapes}; wanted one, of images [N, H, W, 3]")
        shape = _sized(model.inputs[0].shape, hw)
        _write_onnx(model, shape, out)
        if images_nchw is None:
            return None
        images = images_nchw if _has_channels_first(shape) else images_nchw.transpose(0, 2, 3, 1)
        if any(size not in (None, found) for size, found in zip(shape[1:], images.shape[1:], strict=True)):
            return None
        answers = model(np.ascontiguousarray(images), training=False)
        if isinstance(answers, list | tuple | dict):
            return None
        return np.asarray(answers).reshape(len(images), -1).astype(np.float32)


def _load(path: str) -> Any:
    import keras

    class DepthwiseConv2D(keras.layers.DepthwiseConv2D):  # type: ignore[misc]
        """Takes the key `groups: 1` too, which Keras 2 wrote without meaning and Keras 3 refuses."""

        def __init__(self, *arguments: Any, groups: int = 1, **settings: Any) -> None:
            super().__init__(*arguments, **settings)

    # By content: Keras goes by the suffix, and files of either kind are met with others.
    suffix = ".keras" if kind_of(Path(path)) is FileKind.KERAS else ".h5"
    with tempfile.TemporaryDirectory(prefix="keras-") as folder:
        named = Path(folder) / f"model{suffix}"
        named.symlink_to(Path(path).resolve())
        try:
            return keras.models.load_model(
                named, custom_objects={"DepthwiseConv2D": DepthwiseConv2D}, compile=False, safe_mode=True
            )
        except Exception as err:  # Keras's errors have no parent of their own
            raise DataError(
                f"Keras {keras.__version__} cannot load it ({in_a_line(err)}); save it by Keras 3, {_ELSEWHERE}"
            ) from None


def _has_channels_first(shape: tuple[int | None, ...]) -> bool:
    return shape[1] in (1, 3) and shape[3] not in (1, 3)


def _sized(shape: tuple[int | None, ...], hw: tuple[int, int] | None) -> tuple[int | None, ...]:
    """Return the shape of the input, with height and width where the model leaves them open."""
    if hw is None:
        return shape
    wanted = (None, None, *hw) if _has_channels_first(shape) else (None, *hw, None)
    return (shape[0], *(found or size for found, size in zip(shape[1:], wanted[1:], strict=True)))


def _write_onnx(model: Any, shape: tuple[int | None, ...], out: str) -> None:
    import onnx
    import tensorflow as tf
    import tf2onnx

    signature = [tf.TensorSpec(shape, model.inputs[0].dtype, name=model.inputs[0].name)]
    function = tf.function(lambda images: model(images, training=False), input_signature=signature)
    try:
        graph = function.get_concrete_function().graph
        converted, _ = tf2onnx.convert.from_function(function, signature, opset=_OPSET)
    except Exception as err:  # as of Keras
        raise DataError(
            f"tf2onnx {tf2onnx.__version__} with TensorFlow {tf.__version__} cannot convert it ({in_a_line(err)})"
        ) from None
    # Constants that a layer keeps as tensors (Normalization's mean) are inputs of TensorFlow's graph, and stay so.
    captured = {inner.name: outer for outer, inner in graph.captures if outer.dtype != tf.resource}
    for value in [value for value in converted.graph.input if value.name in captured]:
        converted.graph.input.remove(value)
        converted.graph.initializer.append(onnx.numpy_helper.from_array(captured[value.name].numpy(), value.name))
    onnx.save(converted, out)
