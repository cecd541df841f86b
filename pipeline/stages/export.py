"""Export: the float32 ONNX model, checked on real images against what it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx

from pipeline.artefacts import file_digest, write_json
from pipeline.config.build_config import AUTO
from pipeline.config.build_file import (
    GRAPH_FILES,
    BackgroundClass,
    BuildConfig,
    ExtraOp,
    Frontend,
    FrontendConfig,
)
from pipeline.config.vdsp import PreprocessSpec, to_vdsp_dict
from pipeline.data import preprocess
from pipeline.data.calibration_list import read_calibration_list, spread
from pipeline.data.imagenet import Sample
from pipeline.data.labels import imagenet_classes, read_classes, usual_classes, write_classes
from pipeline.errors import ConfigError, DataError
from pipeline.models import zoo
from pipeline.onnx_models import classifier
from pipeline.onnx_models.given import Given, check_given, compare
from pipeline.onnx_models.scores import describe, find_scores
from pipeline.stages.artefact_names import CALIBRATION, CLASSES, GIVEN, MODEL, SCORES, write_notes
from pipeline.weights import downloads
from pipeline.weights.file_kinds import FileKind, kind_of, why_not_weights

if TYPE_CHECKING:
    from torch import nn

_CHECKED_IMAGES = 4  # alone and in a batch
_COMPARED_IMAGES = 16  # with what the model was made of


def identity(cfg: BuildConfig) -> object:
    """Return what this stage's outcome depends on, the checkpoint by content."""
    frontend = with_weights(cfg.frontend)
    weights = _digests(frontend) if frontend.checkpoint else "sample"
    network = [frontend.type.value, frontend.model, frontend.num_classes, list(frontend.chw), frontend.input_name]
    network += [frontend.checkpoint_key] if frontend.checkpoint_key else []
    scores = [frontend.output, frontend.background and frontend.background.value]
    return [network, scores, weights, cfg.graph.extra_op is not None, to_vdsp_dict(cfg.preprocess)]


def _digests(frontend: FrontendConfig) -> object:
    assert frontend.checkpoint is not None
    if frontend.type is not Frontend.ONNX:
        return file_digest(frontend.checkpoint)
    return [file_digest(path) for path in classifier.files(frontend.checkpoint)]


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
    for key, value in (("output", frontend.output), ("background", frontend.background)):
        if value is not None:
            raise ConfigError(
                f"frontend.{key}: is for ONNX files; a frontend of type {frontend.type.value} has no use of it"
            )
    row = zoo.find_model(frontend.type.value, frontend.model or "")
    if frontend.checkpoint == AUTO:
        downloads.check(row, "frontend.checkpoint")
    elif _kind_of(frontend.checkpoint) is FileKind.ONNX:
        raise ConfigError(
            f"frontend.checkpoint: {frontend.checkpoint} is a whole model, a frontend of type {frontend.type.value} "
            "wants weights alone; set frontend.type to onnx, or give another file"
        )


def _check_graph_file(checkpoint: Path | None) -> None:
    if checkpoint == AUTO:
        raise ConfigError("frontend.checkpoint: auto, but a frontend of type onnx has no published file; give one")
    kind = _kind_of(checkpoint)
    if kind is not None and kind.is_weights:
        raise ConfigError(
            f"frontend.checkpoint: {checkpoint} holds weights alone, a frontend of type onnx wants a whole model; set "
            "frontend.type and frontend.model to the network's, or give an .onnx file"
        )
    if checkpoint is not None and checkpoint.is_file():
        classifier.check(checkpoint)


def _kind_of(checkpoint: Path | None) -> FileKind | None:
    """Return what a checkpoint is.

    Raises:
        ConfigError: it is a file that no network can be read from, such as a failed download.
    """
    if checkpoint is None or not checkpoint.is_file():
        return None
    try:
        kind = kind_of(checkpoint)
    except OSError as err:
        raise ConfigError(f"frontend.checkpoint: {checkpoint}: cannot be read ({err.strerror})") from None
    if not kind.is_weights and kind not in (FileKind.ONNX, FileKind.UNKNOWN):
        raise ConfigError(f"frontend.checkpoint: {checkpoint}: {why_not_weights(checkpoint, kind)}")
    return kind


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
    """Write the model and how it answers beside what it was made of, on calibration images or else on noise.

    Sample weights are fitted where there are no others. The classes of a build without images are the network's own,
    and written here.
    """
    samples = read_calibration_list(inputs["calibset"] / CALIBRATION) if "calibset" in inputs else []
    classes = len(read_classes(inputs["calibset"] / CLASSES)) if samples else cfg.frontend.num_classes
    # Spread over the list, so that the images show different classes.
    chosen = [samples[index] for index in spread(len(samples), _COMPARED_IMAGES)]
    pixels = [preprocess.decode(sample.source.content()) for sample in chosen]
    pixels = pixels or [preprocess.synthetic(cfg.preprocess, seed) for seed in range(_COMPARED_IMAGES)]
    images = np.stack([preprocess.apply(cfg.preprocess, image_chw) for image_chw in pixels])
    if cfg.frontend.num_classes not in (None, classes):
        raise ConfigError(
            f"frontend.num_classes: {cfg.frontend.num_classes}, but the data set has {classes} classes; set it to "
            "the data set's, or give the data set the model was trained on"
        )
    exported = export(cfg.frontend, images, cfg.preprocess, samples, num_classes=classes)
    if not samples:
        write_classes(out / CLASSES, usual_classes(exported.classes))
    softmax_asked = cfg.graph.extra_op is ExtraOp.SOFTMAX
    write_notes(out, describe(find_scores(exported.model), softmax_asked))
    if softmax_asked:
        classifier.append_softmax(exported.model)
    onnx.save(exported.model, out / MODEL)
    write_json(out / SCORES, {"scores": find_scores(exported.model).value})
    write_json(out / GIVEN, exported.given.as_dict())


@dataclass(frozen=True)
class Exported:
    """The float32 model, how many classes it has, and how it answers beside what it was made of."""

    model: onnx.ModelProto
    classes: int
    given: Given


def export(
    frontend: FrontendConfig,
    images_nchw: npt.NDArray[np.float32],
    spec: PreprocessSpec,
    fit_on: Sequence[Sample],
    num_classes: int | None,
) -> Exported:
    """Return the float32 model of a build file's frontend section.

    Args:
        frontend: what to export.
        images_nchw: float32 [N, C, H, W], prepared images that the model is checked on.
        spec, fit_on: preprocessing and labelled images for sample weights; used where there is no checkpoint.
        num_classes: that the model must have; None: as many as an ONNX model has, ImageNet's 1000 of a named network.

    Raises:
        DataError: the checkpoint does not fit the network, or the model the classes; or the model made of a file
            computes something else than the file.
        PipelineError: the exported model computes something else than the network.
    """
    frontend = with_weights(frontend)
    if frontend.type is Frontend.ONNX:
        return _from_file(frontend, images_nchw, num_classes, "the data set has" if fit_on else None)
    from pipeline.models import exporter

    network = _network(frontend, spec, fit_on, num_classes or len(imagenet_classes()))
    model = exporter.to_onnx(network, frontend.chw, frontend.input_name)
    checked = images_nchw[:_CHECKED_IMAGES]
    exporter.check_against_torch(model, network, checked)
    name = frontend.checkpoint or Path(f"{frontend.model}")
    found = classifier.check_batch(model, checked, name)
    _check_classes(name, found, num_classes, "the data set has" if fit_on else None)
    given, _ = compare("torch", exporter.answers(network, images_nchw), classifier.run_in_chunks(model, images_nchw))
    return Exported(model, found, given)


def _from_file(
    frontend: FrontendConfig, images_nchw: npt.NDArray[np.float32], num_classes: int | None, wanted_by: str | None
) -> Exported:
    path = frontend.checkpoint
    assert path is not None, "checked by BuildConfig.check_inputs"
    model = classifier.load(path, frontend.chw, frontend.output)
    found = classifier.check_batch(model, images_nchw[:_CHECKED_IMAGES], path)
    given = check_given(path, frontend.output, model, images_nchw)
    if frontend.background is not None:
        classifier.cut_class(model, 0 if frontend.background is BackgroundClass.FIRST else -1, found)
        found = classifier.check_batch(model, images_nchw[:_CHECKED_IMAGES], path)
    _check_classes(path, found, num_classes, wanted_by)
    return Exported(model, found, given)


def _check_classes(path: Path, found: int, wanted: int | None, wanted_by: str | None) -> None:
    if wanted in (None, found):
        return
    line = f"{path}: has {found} classes, but {wanted_by or 'frontend.num_classes is'} {wanted}"
    if found == (wanted or 0) + 1 and path.suffix == ".onnx":
        line += (
            "; where one of them is a background class that no image shows (the first, in TensorFlow's networks), cut "
            "it off with --set frontend.background=first (or last)"
        )
    elif wanted_by and found > (wanted or 0):
        line += (
            f". Where the images show only some of the {found}, name their classes in a list (lines 'name index'): "
            f"--set dataset.val_label=FILE --set frontend.num_classes={found} --set dataset.sampler.cover_classes=false"
        )
    elif wanted_by:
        line += "; give images of the classes it was trained on alone, one folder a class"
    raise DataError(line)


def _network(frontend: FrontendConfig, spec: PreprocessSpec, fit_on: Sequence[Sample], num_classes: int) -> nn.Module:
    from pipeline.weights import checkpoints, sample_weights

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
        state = checkpoints.read_state_dict(frontend.checkpoint, frontend.checkpoint_key)
        checkpoints.load_strictly(network, state, frontend.checkpoint, f"{frontend.type.value} {frontend.model}")
    return network
