"""What a build file's frontend wants, looked at before any work: kinds of files, names, published weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from pipeline.config.build_config import BuildConfig
from pipeline.config.choices import GRAPH_FILES, Frontend
from pipeline.config.sections import AUTO, FrontendConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.models import zoo
from pipeline.onnx_models import classifier
from pipeline.weights import keras_models, paddle_inference, published, torch_programs
from pipeline.weights.file_kinds import FileKind, kind_of, why_not_weights

# Frontends whose file holds the graph itself, and can be read here.
WHOLE_MODELS = (Frontend.ONNX, Frontend.PADDLE, Frontend.PYTORCH, Frontend.KERAS)


def check(frontend: FrontendConfig) -> None:
    """Raise ConfigError for a frontend that this version cannot export, before any work."""
    if frontend.type in GRAPH_FILES and frontend.type not in WHOLE_MODELS:
        exporter = "tf2onnx" if frontend.type is Frontend.TENSORFLOW else "the exporter of its framework"
        raise ConfigError(
            f"frontend.type: {frontend.type.value} files cannot be read; wanted onnx: convert the model by {exporter}, "
            "then give --set frontend.type=onnx --weights FILE.onnx"
        )
    if frontend.type in WHOLE_MODELS and frontend.checkpoint == AUTO:
        raise ConfigError(
            f"frontend.checkpoint: auto, but a frontend of type {frontend.type.value} has no published file; give one"
        )
    if frontend.type is Frontend.PADDLE:
        if frontend.checkpoint is not None and frontend.checkpoint.exists():
            paddle_inference.check(frontend.checkpoint)
    elif frontend.type is Frontend.KERAS:
        _check_keras(frontend.checkpoint)
    elif frontend.type is Frontend.PYTORCH:
        _check_program(frontend.checkpoint)
    elif frontend.type is Frontend.ONNX:
        _check_graph_file(frontend.checkpoint)
    else:
        _check_network(frontend)


def _check_network(frontend: FrontendConfig) -> None:
    for key, value in (("output", frontend.output), ("background", frontend.background)):
        if value is not None:
            raise ConfigError(
                f"frontend.{key}: is for ONNX files; a frontend of type {frontend.type.value} has no use of it"
            )
    row = zoo.find_model(frontend.type.value, frontend.model or "")
    if frontend.checkpoint == AUTO:
        published.check(row, "frontend.checkpoint")
    elif _kind_of(frontend.checkpoint) is FileKind.ONNX:
        raise ConfigError(
            f"frontend.checkpoint: {frontend.checkpoint} is a whole model, a frontend of type {frontend.type.value} "
            "expects weights only; set frontend.type to onnx, or give another file"
        )


def _check_program(checkpoint: Path | None) -> None:
    """Refuse what is neither TorchScript nor a program; of weights alone, and of other files, `_kind_of` says why."""
    if checkpoint is None or not checkpoint.is_file() or torch_programs.is_program(checkpoint):
        return
    kind = _kind_of(checkpoint)
    if kind is FileKind.ONNX:
        raise ConfigError(f"frontend.checkpoint: {checkpoint} is an ONNX model; set frontend.type to onnx")
    raise ConfigError(
        f"frontend.checkpoint: {checkpoint} holds only weights, a frontend of type pytorch expects TorchScript or a "
        "program of torch.export; set frontend.type and frontend.model to the network's (init finds out which)"
    )


def _check_keras(checkpoint: Path | None) -> None:
    if checkpoint is None or not checkpoint.is_file():
        return
    if not keras_models.is_keras_model(checkpoint) and _kind_of(checkpoint) is FileKind.ONNX:
        raise ConfigError(f"frontend.checkpoint: {checkpoint} is an ONNX model; set frontend.type to onnx")
    keras_models.check(checkpoint)


def _check_graph_file(checkpoint: Path | None) -> None:
    kind = _kind_of(checkpoint)
    if kind is not None and kind.is_weights:
        raise ConfigError(
            f"frontend.checkpoint: {checkpoint} holds only weights, a frontend of type onnx expects a whole model; set "
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
        raise ConfigError(f"frontend.checkpoint: {checkpoint}: cannot be read ({err.strerror})") from err
    if not kind.is_weights and kind not in (FileKind.ONNX, FileKind.UNKNOWN):
        raise ConfigError(f"frontend.checkpoint: {checkpoint}: {why_not_weights(checkpoint, kind)}")
    return kind


def fetch_weights(cfg: BuildConfig) -> BuildConfig:
    """Return the build file with the place of the published checkpoint, fetched if need be, where it says `auto`."""
    if cfg.frontend.checkpoint != AUTO:
        return cfg
    row = zoo.find_model(cfg.frontend.type.value, cfg.frontend.model or "")
    return replace(cfg, published=published.fetch(row, "frontend.checkpoint"))


def is_to_be_fetched(cfg: BuildConfig) -> bool:
    """Tell whether the checkpoint is the published one and not on this machine yet."""
    if cfg.frontend.checkpoint != AUTO or cfg.published is not None:
        return False
    return not published.is_fetched(zoo.find_model(cfg.frontend.type.value, cfg.frontend.model or ""))


@contextmanager
def as_onnx(
    kind: Frontend, given: Path, chw: tuple[int, int, int], images_nchw: npt.NDArray[np.float32]
) -> Iterator[tuple[Path, npt.NDArray[np.float32] | None]]:
    """Yield the ONNX file of a whole model, converted where it is another kind; errors name the file that was given.

    With it its framework's own answers for some images, [N, classes], where it was asked.
    """
    if kind is Frontend.ONNX:
        yield given, None
        return
    with TemporaryDirectory(prefix="export-") as folder:
        converted = Path(folder) / "model.onnx"
        answers = None
        if kind is Frontend.PADDLE:
            paddle_inference.to_onnx(given, converted)
        elif kind is Frontend.KERAS:
            answers = keras_models.to_onnx(given, converted, chw[1:], images_nchw)
        else:
            answers = torch_programs.to_onnx(given, converted, chw, images_nchw)
        try:
            yield converted, answers
        except PipelineError as err:
            raise type(err)(str(err).replace(str(converted), str(given))) from err
