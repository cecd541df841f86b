"""What a build reads, looked at before any work: how many images its classes need, the input of an ONNX file, weights.

Each of these would be found by a stage too, after minutes of other work.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from pipeline.config.build_config import BuildConfig
from pipeline.config.choices import Frontend, Precision
from pipeline.config.sections import AUTO
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data.imagenet import Dataset, list_dataset
from pipeline.errors import DataError
from pipeline.models import zoo
from pipeline.onnx_models import files, input_units, outputs, signature
from pipeline.onnx_models.input_units import InputUnit
from pipeline.terminal import console


def settle_images(cfg: BuildConfig) -> BuildConfig:
    """Return the build file with at least one calibration image per class: the vendor's ask for 50 or 100 of 1000.

    Raises:
        DataError: the images cannot be listed, some classes have none, or there are fewer than are wanted.
    """
    if cfg.backend.dtype is not Precision.INT8 or cfg.dataset.path is None:
        return cfg
    found = _calibration_images(cfg)
    classes, images = len(found.classes), len(found.samples)
    wanted, covers = cfg.dataset.sampler.get_data_num, cfg.dataset.sampler.cover_classes
    counts = Counter(sample.class_index for sample in found.samples)
    empty = [known.id for index, known in enumerate(found.classes) if not counts[index]]
    if covers and empty:
        shown = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
        raise DataError(
            f"{found.path}: {len(empty)} of {classes} classes have no image: {shown}; add images of them, remove "
            "folders that are no classes, or set dataset.sampler.cover_classes to false"
        )
    if wanted > images:
        raise DataError(
            f"{found.path}: holds {images} images, dataset.sampler.get_data_num asks for {wanted}; ask for {images} "
            "(--num_images of build), or give a larger data set"
        )
    if not covers or wanted >= classes:
        return cfg
    notice = (
        f"dataset.sampler.get_data_num: {classes} calibration images in place of {wanted}, one for each class; with "
        f"dataset.sampler.cover_classes=false it is {wanted}"
    )
    sampler = replace(cfg.dataset.sampler, get_data_num=classes)
    return replace(cfg, dataset=replace(cfg.dataset, sampler=sampler), notices=(*cfg.notices, notice))


def check_model(cfg: BuildConfig) -> None:
    """Raise DataError where an ONNX file has no such output, or another input than the build file says.

    Only the structure is read, not the tensors beside the file.
    """
    frontend = cfg.frontend
    if frontend.type is not Frontend.ONNX or frontend.checkpoint is None:
        return
    model: onnx.ModelProto = files.structure(frontend.checkpoint)
    note = check_units(model, frontend.checkpoint, cfg.preprocess)
    if note is not None:
        console.warning(f"note: {note}")
    outputs.choose_output(model, frontend.checkpoint, frontend.output)
    signature.take_input(model, frontend.checkpoint, frontend.chw)
    own = model.graph.input[0].name
    if frontend.input_name != own:
        console.warning(
            f"note: {cfg.as_typed(f'frontend.shape: the input of {frontend.checkpoint} is {own!r}')}, not "
            f"{frontend.input_name!r}; it has no other, so it is taken"
        )


def check_units(model: onnx.ModelProto, path: Path, spec: PreprocessSpec) -> str | None:
    """Return a line for the user where a network seems to normalise images that the build file normalises too.

    Args:
        model: of the network as it was given.
        path: of the file that it was given as, for messages.

    Raises:
        DataError: it is certain, since the network takes pixels.
    """
    unit = input_units.unit_of(model)
    if unit is InputUnit.PIXELS and not is_plain(spec):
        whole = next((signature.kind_of(value) for value in model.graph.input if signature.takes_pixels(value)), None)
        does = f"its input is {whole}: the network casts and normalises" if whole else "the network normalises"
        raise DataError(
            f"{path}: {does} its pixels itself, and process_ops normalise them too; set Normalize to "
            "{mean: [0, 0, 0], std: [1, 1, 1], div255: false} there, or export the network without "
            f"{'the Cast and ' if whole else ''}the normalisation"
        )
    if unit is InputUnit.SHARES and not (np.allclose(spec.mean, 0) and np.allclose(spec.std, 1)):
        return (
            f"{path}: the network begins with a normalisation of images of 0 to 1, and process_ops normalise them "
            "too; where it was not trained so, set Normalize to {mean: [0, 0, 0], std: [1, 1, 1]}"
        )
    return None


def check_weights(cfg: BuildConfig) -> None:
    """Raise DataError where the checkpoint of a named network cannot be read, or does not fit it."""
    frontend = cfg.frontend
    if frontend.type is Frontend.ONNX or frontend.checkpoint in (None, AUTO) or frontend.model is None:
        return
    assert frontend.checkpoint is not None
    from pipeline.weights.loading import load_network

    with console.silence():  # the export says what it passes over
        classes = frontend.num_classes
        if classes is None and cfg.dataset.path is not None:
            classes = len(_calibration_images(cfg).classes)
        row = zoo.find_model(frontend.type.value, frontend.model)
        load_network(row, frontend.checkpoint, frontend.checkpoint_key, classes or 1000, frontend.chw[1:])


def is_plain(spec: PreprocessSpec) -> bool:
    """Tell whether images are given to the network as pixels of 0 to 255."""
    return bool(np.allclose(spec.mean, 0.0, atol=1e-6) and np.allclose(spec.std, 1 / 255, rtol=1e-3))


def _calibration_images(cfg: BuildConfig) -> Dataset:
    assert cfg.dataset.path is not None
    with console.silence():  # the stage that reads them says what is left out
        return list_dataset(
            cfg.dataset.path,
            cfg.dataset.sampler.suffix,
            cfg.dataset.val_label,
            class_count=cfg.frontend.num_classes,
            require_labels=cfg.dataset.sampler.cover_classes and cfg.backend.dtype is Precision.INT8,
            class_order=cfg.dataset.class_order,
        )
