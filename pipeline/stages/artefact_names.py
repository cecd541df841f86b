"""The files by which stages meet. A stage reads another's artefact under these names and knows nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

MODEL = "model.onnx"  # export, pixels, equalize, arrange: float32; quantize: int8; convert: float16 or float32
GIVEN = "given.json"  # export: how the float32 model answers beside the file, or the network, that it was made of
CALIBRATION = "calibration.txt"  # calibset: the list of images
IMAGES = "images.sha256"  # calibset: the digest of each image of the list
CLASSES = "classes.tsv"  # calibset, or export of a build without images: a line a class in index order: id, name
OBSERVERS = "observers.npz"  # calibrate: ObserverSet
OUTPUTS = "outputs.npy"  # calibrate: float32 [images, classes], the float32 model's answers in the order of the list
THRESHOLDS = "thresholds.json"  # thresholds: tensor name -> {"low", "high"}
WEIGHTS = "weights.npz"  # round: the int8 weights by layer, and what rounding costs each
ISLANDS = "islands.json"  # tune: the activations that stay float32, and what each trial bought
CHECK = "check.json"  # quantize: what became of the layers; prove: how the model compares with float32
MACHINE = "machine.json"  # trial: where speeds were measured
DATALIST = "npz_datalist.txt"  # image2npz: the evaluation npz
VAL_LABEL = "val_label.txt"  # image2npz: lines `name index`
FIGURES = "figures.json"  # any stage: seconds and memory; never part of an artefact's identity


def float32_model(inputs: Mapping[str, Path]) -> Path:
    """Return the model to quantize: the exported one, or another form of it."""
    return next(inputs[stage] for stage in ("arrange", "equalize", "pixels", "export") if stage in inputs) / MODEL
