"""The Keras network of a build file of the vendor's zoo, a whole model in `.h5`, with weights fitted to the sample.

In an environment with the extra `keras`. As `zoo_networks.py` does: random convolutions, measured norms, and a ridge
regression as the classifier.

    python benchmarks/zoo_keras.py BUILD_FILE --images FOLDER --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import exit_code
from PIL import Image
from zoo_arguments import read_arguments

from pipeline.config.build_config import BuildConfig
from pipeline.config.build_file import load_build_file
from pipeline.data import preprocess
from pipeline.data.imagenet import list_dataset
from pipeline.errors import ConfigError
from pipeline.host.extras import install_command

NETWORKS = {  # of keras.applications, that the zoo's build file names
    "keras_densenet": "DenseNet121",
    "keras_mobilenetv1": "MobileNet",
    "keras_resnet": "ResNet50",
    "keras_xception": "Xception",
}
NORM_IMAGES = 24  # that set the statistics of the norms
NORM_BIAS = 1.0  # as `sample_weights.SMOOTH`
RIDGE = 0.01  # penalty a sample, in units of a standardised feature's variance
BATCH = 16
SHARPNESS = 12.0  # standard deviation of the logits: softmax is then sure of most images


def read_images(cfg: BuildConfig, images: Path, most: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return prepared images, float32 [N, H, W, 3], and their classes, int64 [N]."""
    listed = list_dataset(images, "any", None, None).samples
    listed = listed[:: -(-len(listed) // most)]
    prepared = []
    for sample in listed:
        with Image.open(Path(str(sample.source))) as image:
            pixels = np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
        prepared.append(preprocess.apply(cfg.preprocess, pixels).transpose(1, 2, 0))
    return np.stack(prepared), np.array([sample.class_index or 0 for sample in listed], np.int64)


def fit(model: Any, images_nhwc: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> None:
    """Measure the norms on some images, in place, and fit the last layer to all of them."""
    import keras

    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.beta.assign(np.full(norm.beta.shape, NORM_BIAS))
        norm.momentum = 0.0  # the statistics become those of the next batch
    step = -(-len(images_nhwc) // NORM_IMAGES)
    model(images_nhwc[::step], training=True)
    for norm in norms:
        norm.momentum = 0.99
    last = [layer for layer in model.layers if layer.weights][-1]  # of MobileNet, a 1x1 convolution of pooled maps
    inner = keras.Model(model.input, last.input)
    parts = [inner(images_nhwc[start : start + BATCH]) for start in range(0, len(images_nhwc), BATCH)]
    features = np.concatenate([np.asarray(part) for part in parts]).reshape(len(labels), -1).astype(np.float64)
    mean, deviation = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    standard = (features - mean) / deviation
    targets = np.eye(model.output_shape[-1])[labels]
    gram = standard @ standard.T + RIDGE * len(standard) * np.eye(len(standard))
    weight = standard.T @ np.linalg.solve(gram, targets - targets.mean(axis=0)) / deviation[:, None]
    bias = targets.mean(axis=0) - mean @ weight
    scale = SHARPNESS / max((features @ weight + bias).max(axis=1).mean(), 1e-6)
    last.set_weights([(scale * weight).reshape(last.kernel.shape), scale * bias])


def make(build_file: Path, cfg: BuildConfig, args: argparse.Namespace) -> tuple[Path, str]:
    """Return the file, one that an earlier run made where it is there, and what stands for the zoo's network."""
    os.environ.update(KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="3")
    if build_file.stem not in NETWORKS:
        raise ConfigError(f"{build_file}: no network stands for it; known are those of {', '.join(NETWORKS)}")
    try:
        import keras
    except ImportError as err:
        raise ConfigError(f"{build_file}: making its network needs Keras; run: {install_command('keras')}") from err
    name = NETWORKS[build_file.stem]
    path: Path = args.out / f"keras_{name}-{args.fit_images}.h5"
    if not path.is_file():
        keras.utils.set_random_seed(0)
        model = getattr(keras.applications, name)(weights=None, classifier_activation=None)
        fit(model, *read_images(cfg, args.images, args.fit_images))
        args.out.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.h5")
        model.save(part)
        part.rename(path)
    return path, f"keras.applications {name}"


def run(args: argparse.Namespace) -> None:
    path, says = make(args.build_file, load_build_file(args.build_file, args.set), args)
    print(json.dumps({"file": str(path), "form": says}))


def main(argv: list[str]) -> int:
    args = read_arguments(__doc__, argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
