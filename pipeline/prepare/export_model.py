"""One network of a library as an ONNX model or as TorchScript, without a build file."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.artefacts import whole_file
from pipeline.config.sections import AUTO
from pipeline.data.sample import sample_image
from pipeline.errors import ConfigError
from pipeline.models import exporter, libraries, zoo
from pipeline.onnx_models import classifier
from pipeline.onnx_models.saving import save_model
from pipeline.weights import published
from pipeline.weights.loading import load_network

if TYPE_CHECKING:
    from torch import nn

_CHECK_IMAGES = 4
# Every network of the table divides its input by 32 before the pooling.
_LEAST_SIZE, _LARGEST_SIZE = 32, 2048


@dataclass(frozen=True)
class Flags:
    """The flags that gave the values, for errors."""

    name: str = "--model_name"
    size: str = "--size"
    weights: str = "--pretrained_weights"
    save_dir: str = "--save_dir"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which network is exported, with which weights, for images of which size."""

    library: str  # as in `models`: timm, torchvision, official, paddleclas
    name: str
    size: int  # px, height and width of the input
    weights: Path  # a checkpoint; `auto`: the one that the library publishes
    num_classes: int = 1000
    key: str | None = None  # which state dict of the checkpoint, where it holds several


def export_model(source: Source, save_dir: Path, *, form: str = "onnx", flags: Flags = Flags()) -> tuple[Path, float]:
    """Write `<save_dir>/<name>_<size>.onnx`, float32 with a free batch axis, or the same as TorchScript, `.pt`.

    Args:
        form: onnx or pt.

    Returns:
        The file, and its largest difference from torch as a share of the largest logit, on generated images.

    Raises:
        PipelineError: the network is not known, the checkpoint does not fit, the model differs from torch, or the file
            cannot be written.
    """
    size = source.size
    if not _LEAST_SIZE <= size <= _LARGEST_SIZE:
        raise ConfigError(f"{flags.size}: must be in {_LEAST_SIZE}..{_LARGEST_SIZE} px, got {size}")
    row = zoo.find_model(source.library, source.name, flags.name)
    weights = _find_weights(row, source.weights, flags)
    network = load_network(row, weights, source.key, source.num_classes, (size, size))
    if row.design is zoo.Design.INSTALLED:
        network = libraries.fuse(network)
    images = np.stack([_image(index, size) for index in range(_CHECK_IMAGES)])
    path = save_dir / f"{source.name}_{size}.{form}"
    try:
        with whole_file(path) as scratch:
            write = functools.partial(_write_onnx, row) if form == "onnx" else _write_torchscript
            error = write(network, images, scratch, weights)
    except OSError as err:
        raise ConfigError(f"{flags.save_dir} {save_dir}: cannot be written ({err.strerror}); give another") from err
    return path, error


def _find_weights(row: zoo.Model, weights: Path, flags: Flags) -> Path:
    if weights == AUTO:
        return published.fetch(row, flags.weights)
    if not weights.is_file():
        raise ConfigError(f"{flags.weights} {weights}: {'is a folder' if weights.is_dir() else 'no such file'}")
    return weights


def _write_onnx(
    row: zoo.Model, network: nn.Module, images_nchw: npt.NDArray[np.float32], out: Path, weights: Path
) -> float:
    _, channels, height, width = images_nchw.shape
    model = exporter.export(row, network, (channels, height, width))
    error = exporter.check_against_torch(model, network, images_nchw)
    classifier.check_batch(model, images_nchw, weights)
    save_model(model, out)
    return error


def _write_torchscript(network: nn.Module, images_nchw: npt.NDArray[np.float32], out: Path, _: Path) -> float:
    written = exporter.to_torchscript(network, images_nchw.shape[1:])
    out.write_bytes(written)
    return exporter.check_torchscript(written, network, images_nchw)


def _image(index: int, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return float32 [3, size, size] in about -2..2, the range that normalised images have."""
    pixels = np.asarray(sample_image(index, 0, "calibration").resize((size, size)), np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) / 64 - 2)
