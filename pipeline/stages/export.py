"""Export: the float32 ONNX model, checked on real images against what it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx

from pipeline import preprocess
from pipeline.artefacts import file_digest, write_json
from pipeline.config.build_config import AUTO
from pipeline.config.build_file import GRAPH_FILES, BuildConfig, ExtraOp, Frontend, FrontendConfig
from pipeline.config.vdsp import PreprocessSpec, to_vdsp_dict
from pipeline.data.calibration_list import read_calibration_list
from pipeline.data.imagenet import Sample
from pipeline.data.labels import imagenet_classes, read_classes, usual_classes, write_classes
from pipeline.errors import ConfigError, DataError
from pipeline.models import downloads, onnx_classifier, zoo
from pipeline.models.scores import describe, find_scores
from pipeline.stages.artefact_names import CALIBRATION, CLASSES, MODEL, SCORES, write_notes

if TYPE_CHECKING:
    from torch import nn

_CHECK_IMAGES = 4


def identity(cfg: BuildConfig) -> object:
    """Return what this stage's outcome depends on, the checkpoint by content."""
    frontend = with_weights(cfg.frontend)
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
    if frontend.type in GRAPH_FILES and frontend.type is not Frontend.ONNX:
        raise ConfigError(
            f"frontend.type: {frontend.type.value} files cannot be read; wanted onnx: convert the model by the "
            "exporter of its framework, then give --set frontend.type=onnx --weights FILE.onnx"
        )
    if frontend.type is Frontend.ONNX:
        _check_graph_file(frontend.checkpoint)
        return
    row = zoo.find_model(frontend.type.value, frontend.model or "")
    if frontend.checkpoint == AUTO:
        downloads.check(row, "frontend.checkpoint")
    elif frontend.checkpoint is not None and frontend.checkpoint.suffix == ".onnx":
        raise ConfigError(
            f"frontend.checkpoint: {frontend.checkpoint} is a whole model, a frontend of type {frontend.type.value} "
            "wants weights alone; set frontend.type to onnx, or give another file"
        )


def _check_graph_file(checkpoint: Path | None) -> None:
    if checkpoint == AUTO:
        raise ConfigError("frontend.checkpoint: auto, but a frontend of type onnx has no published file; give one")
    if checkpoint is not None and checkpoint.suffix in zoo.WEIGHTS_SUFFIXES:
        raise ConfigError(
            f"frontend.checkpoint: {checkpoint} holds weights alone, a frontend of type onnx wants a whole model; set "
            "frontend.type and frontend.model to the network's, or give an .onnx file"
        )


def with_weights(frontend: FrontendConfig) -> FrontendConfig:
    """Return the frontend with the published checkpoint, fetched if need be, where it says `auto`."""
    if frontend.checkpoint != AUTO:
        return frontend
    row = zoo.find_model(frontend.type.value, frontend.model or "")
    return replace(frontend, checkpoint=downloads.fetch(row, "frontend.checkpoint"))


def is_to_be_fetched(frontend: FrontendConfig) -> bool:
    """Tell whether the checkpoint is the published one and not on this machine yet."""
    if frontend.checkpoint != AUTO:
        return False
    return not downloads.is_fetched(zoo.find_model(frontend.type.value, frontend.model or ""))


def run(cfg: BuildConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the model; calibration images, else noise, check it, and fit the sample weights where there are no others.

    The classes of a build without images are the network's own, and written here.
    """
    samples = read_calibration_list(inputs["calibset"] / CALIBRATION) if "calibset" in inputs else []
    classes = len(read_classes(inputs["calibset"] / CLASSES)) if samples else cfg.frontend.num_classes
    # Spread over the list, so that the images show different classes.
    chosen = samples[:: max(1, len(samples) // _CHECK_IMAGES)][:_CHECK_IMAGES]
    pixels = [preprocess.decode(sample.source.content()) for sample in chosen]
    pixels = pixels or [preprocess.synthetic(cfg.preprocess, seed) for seed in range(_CHECK_IMAGES)]
    images = np.stack([preprocess.apply(cfg.preprocess, image_chw) for image_chw in pixels])
    if cfg.frontend.num_classes not in (None, classes):
        raise ConfigError(
            f"frontend.num_classes: {cfg.frontend.num_classes}, but the data set has {classes} classes; set it to "
            "the data set's, or give the data set the model was trained on"
        )
    model, found = export(cfg.frontend, images, cfg.preprocess, samples, num_classes=classes)
    if not samples:
        write_classes(out / CLASSES, usual_classes(found))
    softmax_asked = cfg.graph.extra_op is ExtraOp.SOFTMAX
    write_notes(out, describe(find_scores(model), softmax_asked))
    if softmax_asked:
        onnx_classifier.append_softmax(model)
    onnx.save(model, out / MODEL)
    write_json(out / SCORES, {"scores": find_scores(model).value})


def export(
    frontend: FrontendConfig,
    images_nchw: npt.NDArray[np.float32],
    spec: PreprocessSpec,
    fit_on: Sequence[Sample],
    num_classes: int | None,
) -> tuple[onnx.ModelProto, int]:
    """Return the float32 model of a build file's frontend section, and its number of classes.

    Args:
        frontend: what to export.
        images_nchw: float32 [N, C, H, W], prepared images that the model is checked on.
        spec, fit_on: preprocessing and labelled images for sample weights; used where there is no checkpoint.
        num_classes: that the model must have; None: as many as an ONNX model has, ImageNet's 1000 of a named network.

    Raises:
        DataError: the checkpoint does not fit the network, or the model the classes.
        PipelineError: the exported model computes something else than the network.
    """
    frontend = with_weights(frontend)
    if frontend.type is Frontend.ONNX:
        assert frontend.checkpoint is not None, "checked by BuildConfig.check_inputs"
        model = onnx_classifier.load(frontend.checkpoint, frontend.chw)
    else:
        from pipeline.models import exporter

        network = _network(frontend, spec, fit_on, num_classes or len(imagenet_classes()))
        model = exporter.to_onnx(network, frontend.chw, frontend.input_name)
        exporter.check_against_torch(model, network, images_nchw)
    found = onnx_classifier.check_batch(model, images_nchw, frontend.checkpoint or Path(f"{frontend.model}"))
    if num_classes not in (None, found):
        wanted = "the data set has" if fit_on else "frontend.num_classes is"
        raise DataError(f"{frontend.checkpoint}: has {found} classes, but {wanted} {num_classes}")
    return model, found


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
            [(Path(str(sample.source)), sample.class_index or 0) for sample in fit_on],
        )
    else:
        state = checkpoints.read_state_dict(frontend.checkpoint)
        checkpoints.load_strictly(network, state, frontend.checkpoint, f"{frontend.type.value} {frontend.model}")
    return network
