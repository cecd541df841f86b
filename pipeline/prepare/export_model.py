"""Export by itself: one network of a library to ONNX, without a build file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from pipeline.artefacts import whole_file
from pipeline.config.build_config import AUTO
from pipeline.data.sample import sample_image
from pipeline.errors import ConfigError
from pipeline.models import exporter, zoo
from pipeline.onnx_models import classifier
from pipeline.weights import checkpoints, downloads

_CHECK_IMAGES = 4
# Every network of the table divides its input by 32 before the pooling.
_LEAST_SIZE, _LARGEST_SIZE = 32, 2048


def export_model(
    library: str, name: str, size: int, save_dir: Path, weights: Path, num_classes: int = 1000, key: str | None = None
) -> tuple[Path, float]:
    """Write `<save_dir>/<name>_<size>.onnx`, float32 with a free batch axis.

    Args:
        key: which state dict of the checkpoint, where it holds several.

    Returns:
        The file, and its largest difference from torch as a share of the largest logit, on generated images.

    Raises:
        PipelineError: the network is not known, the checkpoint does not fit, or the model differs from torch.
    """
    if not _LEAST_SIZE <= size <= _LARGEST_SIZE:
        raise ConfigError(f"--size: must be in {_LEAST_SIZE}..{_LARGEST_SIZE} px, got {size}")
    row = zoo.find_model(library, name)
    if weights == AUTO:
        weights = downloads.fetch(row, "--pretrained_weights")
    network = zoo.build_network(row, num_classes)
    checkpoints.load_strictly(network, checkpoints.read_state_dict(weights, key), weights, f"{library} {name}")
    model = exporter.to_onnx(network, (3, size, size))
    images = np.stack([_image(index, size) for index in range(_CHECK_IMAGES)])
    error = exporter.check_against_torch(model, network, images)
    classifier.check_batch(model, images, weights)
    path = save_dir / f"{name}_{size}.onnx"
    with whole_file(path) as scratch:
        onnx.save(model, scratch)
    return path, error


def _image(index: int, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return float32 [3, size, size] in about -2..2, the range that normalised images have."""
    pixels = np.asarray(sample_image(index, 0, "calibration").resize((size, size)), np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) / 64 - 2)
