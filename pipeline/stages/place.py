"""Place: whether what lies between convolutions and gates is int8 or float32 (SiLU, GELU, HardSwish, SE blocks), and
whether the scores of attention are.

The graph does not tell which is faster: OpenVINO computes such activations within the convolution where no quantizer is
between, ONNX Runtime computes the convolution in float32 there. Nor does it tell what that costs: noise in scores that
a Softmax reads depends on how sharp it is. So both models are made and run in turn, in every installed runtime, and
answer calibration images; what is int8 has to be faster and to lose no more accuracy than that is worth
(`proof.placements`). Gates that are float32 for OpenVINO's sake may be int8 in ONNX Runtime nevertheless, by what was
measured there (`runtimes.own_placement`). Gates whose channels differ so much that `gate_scaling` scaled them are
float32 in OpenVINO in any case: in int8 they would lose what that is for.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import onnx

from pipeline.artefacts import write_json
from pipeline.config.build_config import BuildConfig
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.data.calibration_list import read_calibration_list
from pipeline.data.preprocess import Prepared
from pipeline.errors import BackendError
from pipeline.host import hardware, isolated
from pipeline.onnx_models.saving import save_model
from pipeline.packages.choice import machine
from pipeline.proof import agreement, placements, speed
from pipeline.proof.placements import FEWER, MORE, Comparison, Found, Tried
from pipeline.proof.speed import Candidate, Rates
from pipeline.quant import pixels
from pipeline.quant.assemble import Parts, assemble
from pipeline.quant.attention_scores import find_scores
from pipeline.quant.divergence import by_image
from pipeline.quant.float_parts import has_gates
from pipeline.quant.gate_scaling import has_scaled_gates
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import choose, installed_runtimes
from pipeline.stages import int8_parts
from pipeline.stages.artefact_names import (
    CALIBRATION,
    FIGURES,
    PLACEMENT,
    TRIALS,
    float32_model,
    read_scores,
    write_notes,
)
from pipeline.terminal import console

IMAGES = 64  # that both placements answer
# Times as fast as in float32, from which a part is int8. Gates: what a machine wanders by. Scores: on a few dozen
# images their noise is known to half a decibel only, which a smaller gain is not worth.
_GATES_WORTH, _SCORES_WORTH = 1.03, 1.05
_GATES = "gates (SiLU, GELU, HardSwish, squeeze-and-excitation)"
_ONNXRUNTIME_GATES = f"in ONNX Runtime, {_GATES}"
_SCORES = "scores of attention"
_SCALED = f"{_GATES} are float32: their channels differ too much for 8 bits"
_ONNXRUNTIME = Runtime.ONNXRUNTIME.value
_MOST_S = 600.0  # beyond what `speed.measure` allows itself, for loading the models

Placed = Mapping[str, bool]


@dataclass(frozen=True, kw_only=True)
class Settings:
    parts: int8_parts.PartSettings
    preprocess: PreprocessSpec
    images: int  # at most so many are answered
    machine: Mapping[str, Any]  # as of `packages.choice.machine`
    isa_caps: tuple[str, ...]  # what holds each runtime to fewer instruction sets, in the order of `Runtime`
    seconds: float  # that measuring may take; 0: the placement that OpenVINO wants, where that is installed


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs: the preprocessing and the machine."""
    return Settings(
        parts=int8_parts.take_settings(cfg),
        preprocess=cfg.preprocess,
        images=IMAGES,
        machine=machine(),
        isa_caps=tuple(hardware.isa_cap(runtime.value) for runtime in Runtime),
        seconds=speed.budget_seconds(),
    )


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write whether gates and scores are float32, and what speed and accuracy said so."""
    begun = time.perf_counter()
    trial = _Trial(settings, inputs)
    notes, found = list[str](), dict[str, dict[str, Any]]()
    placed = _place_gates(trial, found, notes)
    if find_scores(trial.float32):
        in_int8 = {**placed, "scores_in_int8": True}
        by_runtime = trial.run({FEWER: placed, MORE: in_int8}, _SCORES_WORTH, installed_runtimes())
        if by_runtime:
            compared = placements.compare(by_runtime, _SCORES_WORTH)
            placed = in_int8 if compared.takes_more else placed
            found[_SCORES] = compared.as_document()
    write_notes(out, [*notes, *(placements.describe(what, each) for what, each in found.items())])
    write_json(out / PLACEMENT, placed)
    write_json(out / FIGURES, {TRIALS: found, "seconds": round(time.perf_counter() - begun, 1)})


def _place_gates(trial: _Trial, found: dict[str, dict[str, Any]], notes: list[str]) -> Placed:
    """Return where gates are float32; add what was measured to `found`, by what it is about."""
    int8: Placed = {"gates_in_float": False, "onnxruntime_gates": False, "scores_in_int8": False}
    in_float: Placed = {**int8, "gates_in_float": True}
    are_scaled = has_scaled_gates(trial.float32)
    if not are_scaled and not has_gates(trial.float32):
        return int8
    runtimes = [each for each in installed_runtimes() if each is Runtime.ONNXRUNTIME or not are_scaled]
    by_runtime = trial.run({FEWER: in_float, MORE: int8}, _GATES_WORTH, runtimes)
    compared = placements.compare(by_runtime, _GATES_WORTH) if by_runtime and not are_scaled else None
    if are_scaled:
        notes.append(_SCALED)
    if compared is not None:
        found[_GATES] = compared.as_document()
    if not are_scaled and not _leaves_gates(compared):
        return int8
    is_decided = compared is not None and compared.runtimes[FEWER] == _ONNXRUNTIME
    if is_decided or _ONNXRUNTIME not in by_runtime:
        return in_float
    there = placements.compare({_ONNXRUNTIME: by_runtime[_ONNXRUNTIME]}, _GATES_WORTH)
    found[_ONNXRUNTIME_GATES] = there.as_document()
    return {**in_float, "onnxruntime_gates": there.takes_more}


def _leaves_gates(compared: Comparison | None) -> bool:
    """Tell whether gates are float32; without a measurement, where OpenVINO computes them."""
    if compared is None:
        return choose(Runtime.AUTO) is Runtime.OPENVINO and not hardware.is_arm()
    return not compared.takes_more


class _Trial:
    """Two models of one network, measured beside each other."""

    def __init__(self, settings: Settings, inputs: Mapping[str, Path]) -> None:
        self.float32 = onnx.load(float32_model(inputs))
        self._settings, self._inputs = settings, inputs

    def run(self, choices: Mapping[str, Placed], least: float, runtimes: Sequence[Runtime]) -> Found:
        """Return how two placements do in those of some runtimes that run both; nothing: in none, or there is no time.

        Args:
            choices: by name, as of `placements`.
            least: as of `placements.compare`.
        """
        if not self._settings.seconds or not runtimes:
            return {}
        with tempfile.TemporaryDirectory() as folder:
            candidates = []
            for name, placed in choices.items():
                path = Path(folder) / f"{name}.onnx"
                save_model(assemble(self.float32, int8_parts.placed_as(self._parts, placed)).model, path)
                candidates += [Candidate(runtime, "int8", path) for runtime in runtimes]
            found = self._measure(candidates, least)
            for runtime in runtimes if not found else ():
                found |= self._measure([each for each in candidates if each.runtime is runtime], least)
        return found

    def _measure(self, candidates: Sequence[Candidate], least: float) -> dict[str, dict[str, Tried]]:
        """Return what was measured by runtime and placement, in a process of its own; nothing where that was lost."""
        images, expected = self._images
        rates = _rates(candidates, self._settings.seconds, least, images)
        if rates is None:
            return {}
        found: dict[str, dict[str, Tried]] = {}
        scores = read_scores(self._inputs["export"])
        for each, of_rounds, answers in zip(candidates, rates.rounds, rates.answers, strict=True):
            if of_rounds:
                tried = Tried(of_rounds, by_image(expected, answers, scores))
                found.setdefault(each.runtime.value, {})[each.model.stem] = tried
        return found

    @cached_property
    def _parts(self) -> Parts:
        return int8_parts.load(self._settings.parts, self._inputs, self.float32)

    @cached_property
    def _images(self) -> tuple[list[Prepared], agreement.Float32]:
        """What the models answer, and float32's outputs, [images, classes]."""
        raw = pixels.are_input_of(self.float32)
        listed = read_calibration_list(self._inputs["calibset"] / CALIBRATION)
        samples = [listed[index] for index in agreement.choose(len(listed), self._settings.images)]
        images = [preprocess.load(self._settings.preprocess, each.source.content(), raw=raw) for each in samples]
        return images, agreement.float32_answers(float32_model(self._inputs), images)


def _rates(candidates: Sequence[Candidate], budget_s: float, least: float, images: Sequence[Prepared]) -> Rates | None:
    """Return what `speed.measure` does, by CPU time, of a process of its own; None where that was lost."""
    is_clear = partial(placements.is_clear, least)
    measure = partial(speed.measure, by_cpu=True)
    try:
        rates: Rates = isolated.call(measure, candidates, budget_s, is_clear, images, seconds=4 * budget_s + _MOST_S)
    except (isolated.LostError, BackendError) as err:
        console.detail(f"placements were not measured: {err}")
        return None
    return rates
