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
from pipeline.config.build_config import BuildConfig
from pipeline.config.choices import BackgroundClass, ExtraOp, Frontend
from pipeline.config.published import recorded_preprocess
from pipeline.config.sections import AUTO
from pipeline.config.spec_comparison import describe, difference
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.data.calibration_list import choose_evenly, read_calibration_list
from pipeline.data.imagenet import Sample
from pipeline.data.labels import imagenet_classes, read_classes, usual_classes, write_classes
from pipeline.errors import ConfigError, DataError
from pipeline.host.hardware import release_memory
from pipeline.models import libraries, zoo
from pipeline.onnx_models import classifier, files
from pipeline.onnx_models.origin_check import SINGLE, OriginCheck, check_origin, compare, with_own_rounding
from pipeline.onnx_models.run import takes_one_image
from pipeline.onnx_models.saving import save_model
from pipeline.onnx_models.scores import describe as describe_scores
from pipeline.onnx_models.scores import find_scores
from pipeline.prepare.frontends import WHOLE_MODELS, as_onnx
from pipeline.prepare.inputs import check_units
from pipeline.stages.artefact_names import CALIBRATION, CLASSES, GIVEN, MODEL, SCORES, write_notes
from pipeline.stages.settings import InputFile
from pipeline.weights import paddle_inference, torch_programs

if TYPE_CHECKING:
    from torch import nn

_ALONE = "its batch of 1 cannot be freed: the network takes one image at a time, and larger requests run in a loop"
_UNLABELLED = "images without labels count as the"
_CHECKED_IMAGES = 4  # alone and in a batch
_COMPARED_IMAGES = 8  # images for the comparison with the original


@dataclass(frozen=True, kw_only=True)
class Settings:
    type: Frontend
    model: str | None  # None where the checkpoint is the graph
    checkpoint: InputFile | None  # None: sample weights
    checkpoint_key: str | None  # which of several state dicts
    input_name: str
    chw: tuple[int, int, int]
    num_classes: int | None  # None: as the model says
    output: str | None  # of an ONNX file with several
    background: BackgroundClass | None  # a class of an ONNX file that is cut off
    softmax: bool  # appended to the network's output
    library: str | None  # version of the installed library whose network it is
    preprocess: PreprocessSpec


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs; a checkpoint `auto` is resolved already."""
    frontend = cfg.frontend
    return Settings(
        type=frontend.type,
        model=frontend.model,
        checkpoint=_checkpoint(frontend.type, cfg.published or frontend.checkpoint),
        checkpoint_key=frontend.checkpoint_key,
        input_name=frontend.input_name,
        chw=frontend.chw,
        num_classes=frontend.num_classes,
        output=frontend.output,
        background=frontend.background,
        softmax=cfg.graph.extra_op is ExtraOp.SOFTMAX,
        library=zoo.library_version(frontend.type.value, frontend.model),
        preprocess=cfg.preprocess,
    )


def _checkpoint(kind: Frontend, path: Path | None) -> InputFile | None:
    assert path != AUTO, "resolved by fetch_weights"
    if path is None:
        return None
    if kind is Frontend.PADDLE:
        return _paddle_files(path)
    if kind is not Frontend.ONNX:
        return InputFile(path)
    return InputFile(path, tuple(part for part in classifier.files(path) if part != path))


def _paddle_files(path: Path) -> InputFile:
    if path.is_file() and path.suffix == ".tar":
        return InputFile(path)
    model = paddle_inference.files_of(path)
    return InputFile(model.program, (model.parameters,))


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the model and its comparison with the original, on calibration images, or on noise where there are none.

    Sample weights are fitted where there are no others. The classes of a build without images are the network's own,
    and written here.
    """
    samples = read_calibration_list(inputs["calibset"] / CALIBRATION) if "calibset" in inputs else []
    classes = len(read_classes(inputs["calibset"] / CLASSES)) if samples else settings.num_classes
    # Spread over the list, so that the images show different classes.
    chosen = [samples[index] for index in choose_evenly(len(samples), _COMPARED_IMAGES)]
    pixels = [preprocess.decode(sample.source.content(), settings.preprocess.preprocess_as) for sample in chosen]
    pixels = pixels or [preprocess.synthetic(settings.preprocess, seed) for seed in range(_COMPARED_IMAGES)]
    images = np.stack([preprocess.apply(settings.preprocess, image_chw) for image_chw in pixels])
    if settings.num_classes not in (None, classes):
        raise ConfigError(
            f"frontend.num_classes: {settings.num_classes}, but the data set has {classes} classes; set it to "
            "the data set's, or give the data set the model was trained on"
        )
    exported = export(settings, images, samples, num_classes=classes)
    if not samples:
        write_classes(out / CLASSES, usual_classes(exported.classes))
    alone = takes_one_image(exported.model)
    notes = [f"{settings.checkpoint.path if settings.checkpoint else settings.model}: {_ALONE}"] if alone else []
    if settings.type is Frontend.PYTORCH and settings.checkpoint is not None:
        notes.append(f"{settings.checkpoint.path}: {torch_programs.TRUST}")
    notes += describe_scores(find_scores(exported.model), settings.softmax)
    write_notes(out, [*notes, *exported.notes, *_disagreement(settings)])
    if settings.softmax:
        classifier.append_softmax(exported.model)
    release_memory()  # that the sessions held
    save_model(exported.model, out / MODEL)
    write_json(out / SCORES, {"scores": find_scores(exported.model).value, **({"batch": 1} if alone else {})})
    write_json(out / GIVEN, exported.given.as_dict())


def _disagreement(settings: Settings) -> list[str]:
    """Return a line where the checkpoint is a published one, recorded with another preprocessing than the build's."""
    recorded = recorded_preprocess(settings.type.value, settings.model)
    if settings.checkpoint is None or recorded is None:
        return []
    differs = difference(settings.preprocess, recorded)
    row = zoo.find_model(settings.type.value, settings.model or "")
    if differs is None or row.sha256 is None or not file_digest(settings.checkpoint.path).startswith(row.sha256):
        return []
    shape = f"{{{settings.input_name}: {[1, 3, *recorded.output_hw]}}}"
    size = "" if settings.chw[1:] == recorded.output_hw else f" --set 'frontend.shape={shape}'"
    return [
        f"preprocessing: {describe(settings.preprocess)} in this build, {describe(recorded)} as recorded with the "
        f"published checkpoint ({differs}); --weights auto --set dataset.process_ops=null --set "
        f"dataset.vdsp_params=null{size} takes the latter"
    ]


@dataclass(frozen=True)
class Exported:
    """The float32 model, its number of classes, and its comparison with the original."""

    model: onnx.ModelProto
    classes: int
    given: OriginCheck
    notes: tuple[str, ...] = ()  # lines for the user


def export(
    settings: Settings, images_nchw: npt.NDArray[np.float32], fit_on: Sequence[Sample], num_classes: int | None
) -> Exported:
    """Return the float32 model of a network or file, without the softmax that may be asked for.

    Args:
        settings: what to export.
        images_nchw: float32 [N, C, H, W], prepared images that the model is checked on.
        fit_on: labelled images for sample weights; used where there is no checkpoint.
        num_classes: required number; None: as many as an ONNX model has, ImageNet's 1000 of a named network.

    Raises:
        DataError: the checkpoint does not fit the network, or the model the classes; the model made of a file
            computes something else than the file; or it normalises pixels that the build file normalises too.
        PipelineError: the exported model computes something else than the network.
    """
    if settings.type in WHOLE_MODELS:
        assert settings.checkpoint is not None, "checked by BuildConfig.check_inputs"
        with as_onnx(settings.type, settings.checkpoint.path, settings.chw, images_nchw) as (path, answers):
            note = None
            if settings.type is not Frontend.ONNX:  # of which every build says it, before any work
                note = check_units(files.structure(path), settings.checkpoint.path, settings.preprocess)
            exported = _from_file(path, answers, settings, images_nchw, num_classes, _wanted_by(fit_on))
            return replace(exported, notes=(note,) if note else ())
    from pipeline.models import exporter

    row = zoo.find_model(settings.type.value, settings.model or "")
    network = _network(row, settings, fit_on, num_classes or len(imagenet_classes()))
    expected = exporter.run_network(network, images_nchw)
    model = exporter.export(row, network, settings.chw, settings.input_name)
    del network  # before a session holds its weights too
    release_memory()
    name = settings.checkpoint.path if settings.checkpoint else Path(f"{settings.model}")
    made, found = classifier.run_checked(model, images_nchw, name)
    tolerance = with_own_rounding(SINGLE, model, images_nchw, expected, made)
    exporter.check_outputs(expected, made, tolerance.good)
    _check_classes(name, found, num_classes, _wanted_by(fit_on))
    given, _ = compare("torch", expected, made, tolerance)
    return Exported(model, found, given)


def _from_file(
    path: Path,
    answers: npt.NDArray[np.float32] | None,
    settings: Settings,
    images_nchw: npt.NDArray[np.float32],
    num_classes: int | None,
    wanted_by: str | None,
) -> Exported:
    model = classifier.load(path, settings.chw, settings.output)
    found = classifier.check_batch(model, images_nchw[:_CHECKED_IMAGES], path)
    given = check_origin(path, settings.output, model, images_nchw)
    if answers is not None:  # of the network itself, which says more than those of what it was converted to
        made = classifier.run_in_chunks(model, images_nchw)
        source = "keras" if settings.type is Frontend.KERAS else "torch"
        given, _ = compare(source, answers, made, with_own_rounding(SINGLE, model, images_nchw, answers, made))
    if settings.background is not None:
        classifier.cut_class(model, 0 if settings.background is BackgroundClass.FIRST else -1, found)
        found = classifier.check_batch(model, images_nchw[:_CHECKED_IMAGES], path)
    _check_classes(path, found, num_classes, wanted_by)
    return Exported(model, found, given)


def _wanted_by(samples: Sequence[Sample]) -> str | None:
    """Return what sets the number of classes, for a message; None: frontend.num_classes."""
    if samples and all(sample.class_index is None for sample in samples):
        return _UNLABELLED
    return "the data set has" if samples else None


def _check_classes(path: Path, found: int, wanted: int | None, wanted_by: str | None) -> None:
    if wanted in (None, found):
        return
    line = f"{path}: has {found} classes, but {wanted_by or 'frontend.num_classes is'} {wanted}"
    if wanted_by == _UNLABELLED:
        raise DataError(f"{line} of ImageNet; set frontend.num_classes={found}")
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
        line += (
            "; give images of the classes it was trained on alone, one folder per class or in a label list (lines "
            f"'name index') that counts from 0 to {found - 1}"
        )
    raise DataError(line)


def _network(row: zoo.Model, settings: Settings, fit_on: Sequence[Sample], num_classes: int) -> nn.Module:
    from pipeline.weights.loading import load_network

    if settings.checkpoint is None:
        network = zoo.build_network(row, num_classes, settings.chw[1:])
        _fit_sample(row, network, settings.preprocess, fit_on)
    else:
        network = load_network(row, settings.checkpoint.path, settings.checkpoint_key, num_classes, settings.chw[1:])
    return libraries.fuse(network) if row.design is zoo.Design.INSTALLED else network


def _fit_sample(row: zoo.Model, network: nn.Module, spec: PreprocessSpec, fit_on: Sequence[Sample]) -> None:
    from pipeline.weights import sample_weights

    try:
        sample_weights.fit_sample_weights(
            network,
            lambda image: preprocess.apply(
                spec, np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
            ),
            [(Path(str(sample.source)), sample.class_index or 0) for sample in fit_on],
            norm_bias=sample_weights.SMOOTH if row.design is zoo.Design.INSTALLED else 0.0,
        )
    except (ValueError, RuntimeError, AssertionError) as err:
        if row.design is not zoo.Design.INSTALLED:
            raise
        raise DataError(
            f"{row.library} {row.name}: sample weights cannot be fitted to this network ({err}); give --weights and "
            "--dataset"
        ) from None
