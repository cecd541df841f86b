"""The files that stages exchange: a stage knows another's artefact by these names only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.artefacts import write_json
from pipeline.onnx_models.scores import Scores
from pipeline.runtimes.activations import Arithmetic

MODEL = "model.onnx"  # export, pixels, equalize, arrange: float32; quantize: int8; convert: float16 or float32
GIVEN = "given.json"  # export: how the float32 model answers beside the file, or the network, that it was made of
SCORES = "scores.json"  # export: what the model's outputs are, and its batch where that is fixed
CALIBRATION = "calibration.txt"  # calibset: the list of images
IMAGES = "images.sha256"  # calibset: the digest of each image of the list
CLASSES = "classes.tsv"  # calibset, or export of a build without images: a line per class in index order: id, name
OBSERVERS = "observers.npz"  # calibrate: ObserverSet; round: this and the next of its own images
# calibrate: float32 [images, classes], the model's answers in the order of the list; in bfloat16, where that is faster
OUTPUTS = "outputs.npy"
THRESHOLDS = "thresholds.json"  # thresholds, ranges: tensor name -> {"low", "high"}
ARITHMETIC = "arithmetic.json"  # equalize, round: what they read activations in, which later stages do too
WEIGHTS = "weights.npz"  # round: the int8 weights by layer, and what rounding costs each
PLACEMENT = "placement.json"  # place: whether gates stay float32, in ONNX Runtime too, and scores are int8
ISLANDS = "islands.json"  # tune: the activations that stay float32, and what each trial bought
CHECK = "check.json"  # quantize: what became of the layers; prove: how the model compares with float32
MACHINE = "machine.json"  # trial: where speeds were measured
DATALIST = "npz_datalist.txt"  # image2npz: the evaluation npz
VAL_LABEL = "val_label.txt"  # image2npz: lines `name index`
FIGURES = "figures.json"  # any stage: seconds and memory; never part of an artefact's identity
TRIALS = "placements"  # place, in its figures: by part, what was chosen and what that brought and cost
NOTES = "notes.json"  # any stage: lines for the user, said by every build; never part of an artefact's identity


def float32_model(inputs: Mapping[str, Path]) -> Path:
    """Return the model to quantize: the exported one, or another form of it."""
    return next(inputs[stage] for stage in ("arrange", "equalize", "pixels", "export") if stage in inputs) / MODEL


def thresholds_file(inputs: Mapping[str, Path]) -> Path:
    """Return the file with the range of each activation: those that were measured, where any were."""
    return inputs["ranges" if "ranges" in inputs else "thresholds"] / THRESHOLDS


def read_placement(inputs: Mapping[str, Path]) -> dict[str, bool]:
    """Return what stage `place` decided; nothing before it ran."""
    if "place" not in inputs:
        return {}
    placed: dict[str, bool] = json.loads((inputs["place"] / PLACEMENT).read_text(encoding="utf-8"))
    return placed


def read_scores(export: Path) -> Scores:
    """Return what the outputs of the exported model are."""
    return Scores(json.loads((export / SCORES).read_text(encoding="utf-8"))["scores"])


def read_percentile(inputs: Mapping[str, Path]) -> float:
    """Return the percentile that stage `thresholds` chose, in %."""
    found: float = json.loads((inputs["thresholds"] / FIGURES).read_text(encoding="utf-8"))["percentile"]
    return found


def read_batch(export: Path) -> int | None:
    """Return how many images the exported model takes at a time; None: any number."""
    batch: int | None = json.loads((export / SCORES).read_text(encoding="utf-8")).get("batch")
    return batch


def write_arithmetic(out: Path, arithmetic: Arithmetic) -> None:
    write_json(out / ARITHMETIC, arithmetic.value)


def read_arithmetic(inputs: Mapping[str, Path]) -> Arithmetic | None:
    """Return what an earlier stage read activations in; None where none did."""
    for path in (inputs[stage] / ARITHMETIC for stage in ("equalize", "round") if stage in inputs):
        if path.is_file():
            return Arithmetic(json.loads(path.read_text(encoding="utf-8")))
    return None


def write_notes(out: Path, lines: Sequence[str]) -> None:
    """Leave lines that every build says, whether it ran the stage or found it up to date."""
    if lines:
        write_json(out / NOTES, list(lines))


def read_notes(artefact: Path) -> list[str]:
    path = artefact / NOTES
    lines: list[str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return lines
