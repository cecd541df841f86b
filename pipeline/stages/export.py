"""Export: the float32 ONNX model, checked on real images against what it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx

from pipeline import preprocess
from pipeline.artefacts import file_digest
from pipeline.config.build_file import BuildConfig, ExtraOp, Frontend, FrontendConfig
from pipeline.config.vdsp import PreprocessSpec, to_vdsp_dict
from pipeline.data.calibration_list import read_calibration_list
from pipeline.data.imagenet import Sample
from pipeline.data.labels import read_classes
from pipeline.errors import ConfigError, DataError
from pipeline.models import onnx_classifier, zoo
from pipeline.stages.artefact_names import CALIBRATION, CLASSES, MODEL

if TYPE_CHECKING:
    from torch import nn

_CHECK_IMAGES = 4


def identity(cfg: BuildConfig) -> object:
    """Return what this stage's outcome depends on, the checkpoint by content."""
    frontend = cfg.frontend
    weights = _digests(frontend) if frontend.checkpoint else "sample"
    network = [frontend.type.value, frontend.model, frontend.num_classes, list(frontend.chw), frontend.input_name]
    return [network, weights, cfg.graph.extra_op is not None, to_vdsp_dict(cfg.preprocess)]


def _digests(frontend: FrontendConfig) -> object:
    assert frontend.checkpoint is not None
    if frontend.type is not Frontend.ONNX:
        return file_digest(frontend.checkpoint)
    return [file_digest(path) for path in onnx_classifier.files(frontend.checkpoint)]


def check(frontend: FrontendConfig) -> None:
    """Raise ConfigError for a frontend that this version cannot export, before any work."""
    if frontend.type is not Frontend.ONNX:
        zoo.find_model(frontend.type.value, frontend.model or "")


def run(cfg: BuildConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the model; calibration images check it, and fit the sample weights where there are no others."""
    samples = read_calibration_list(inputs["calibset"] / CALIBRATION)
    classes = len(read_classes(inputs["calibset"] / CLASSES))
    # Spread over the list, so that the images show different classes.
    chosen = samples[:: max(1, len(samples) // _CHECK_IMAGES)][:_CHECK_IMAGES]
    images = np.stack([preprocess.apply(cfg.preprocess, preprocess.decode(s.source.content())) for s in chosen])
    if cfg.frontend.num_classes not in (None, classes):
        raise ConfigError(
            f"frontend.num_classes: {cfg.frontend.num_classes}, but the data set has {classes} classes; set it to "
            "the data set's, or give the data set the model was trained on"
        )
    model = export(cfg.frontend, images, cfg.preprocess, samples, num_classes=classes)
    if cfg.graph.extra_op is ExtraOp.SOFTMAX:
        onnx_classifier.append_softmax(model)
    onnx.save(model, out / MODEL)


def export(
    frontend: FrontendConfig,
    images_nchw: npt.NDArray[np.float32],
    spec: PreprocessSpec,
    fit_on: Sequence[Sample],
    num_classes: int,
) -> onnx.ModelProto:
    """Return the float32 model of a build file's frontend section.

    Args:
        frontend: what to export.
        images_nchw: float32 [N, C, H, W], prepared images that the model is checked on.
        spec, fit_on: preprocessing and labelled images for sample weights; used where there is no checkpoint.
        num_classes: that the model must have.

    Raises:
        DataError: the checkpoint does not fit the network, or the model the classes.
        PipelineError: the exported model computes something else than the network.
    """
    if frontend.type is Frontend.ONNX:
        assert frontend.checkpoint is not None, "checked by BuildConfig.check_inputs"
        model = onnx_classifier.load(frontend.checkpoint, frontend.chw)
    else:
        from pipeline.models import exporter

        network = _network(frontend, spec, fit_on, num_classes)
        model = exporter.to_onnx(network, frontend.chw, frontend.input_name)
        exporter.check_against_torch(model, network, images_nchw)
    found = onnx_classifier.check_batch(model, images_nchw, frontend.checkpoint or Path(f"{frontend.model}"))
    if found != num_classes:
        raise DataError(f"{frontend.checkpoint}: has {found} classes, but the data set has {num_classes}")
    return model


def _network(frontend: FrontendConfig, spec: PreprocessSpec, fit_on: Sequence[Sample], num_classes: int) -> nn.Module:
    from pipeline.models import checkpoints, sample_weights

    assert frontend.model is not None, "checked by the build file's loader"
    row = zoo.find_model(frontend.type.value, frontend.model)
    network = zoo.build_network(row, num_classes)
    if frontend.checkpoint is None:
        sample_weights.fit_sample_weights(
            network,
            lambda image: preprocess.apply(
                spec, np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
            ),
            [(sample.source.root / sample.source.name, sample.class_index or 0) for sample in fit_on],
        )
    else:
        state = checkpoints.read_state_dict(frontend.checkpoint)
        checkpoints.load_strictly(network, state, frontend.checkpoint, f"{frontend.type.value} {frontend.model}")
    return network
