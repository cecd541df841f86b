"""Place: whether what lies between convolutions and gates is int8 or float32 (SiLU, GELU, HardSwish, SE blocks), and
whether the scores of attention are.

The graph does not tell which is faster: OpenVINO computes such activations within the convolution where no quantizer is
between, ONNX Runtime computes the convolution in float32 there. So both models are made and run in turn, in every
installed runtime, and the placement whose best runtime is the faster is taken. Fewer quantizers are not less accurate.
Gates whose channels differ so much that `gate_scaling` scaled them are float32 in any case: in int8 they would lose
what that is for. Scores are int8 only where that is worth its noise: `_WORTH`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import onnx

from pipeline.artefacts import write_json
from pipeline.config.build_config import BuildConfig
from pipeline.errors import BackendError
from pipeline.host import hardware, isolated
from pipeline.onnx_models.saving import save_model
from pipeline.packages.choice import machine
from pipeline.proof import speed
from pipeline.proof.speed import Candidate
from pipeline.quant.assemble import assemble
from pipeline.quant.attention_scores import find_scores
from pipeline.quant.float_parts import has_gates
from pipeline.quant.gate_scaling import has_scaled_gates
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import choose, installed_runtimes
from pipeline.stages import int8_parts
from pipeline.stages.artefact_names import FIGURES, PLACEMENT, float32_model, write_notes
from pipeline.terminal import console

_EQUAL = 0.97  # of the speed of int8 gates: below, those in float32 are slower beyond what a machine wanders by
_WORTH = 1.08  # times the speed with scores in float32, from which they are int8: they cost about half a decibel
_GATES = "gates (SiLU, GELU, HardSwish, squeeze-and-excitation)"
_SCORES = "scores of attention"
_SCALED = f"{_GATES} are float32: their channels differ too much for 8 bits"
_MOST_S = 600.0  # beyond what `speed.measure` allows itself, for loading the models

Rates = Mapping[str, Mapping[str, float]]  # images/s by runtime and placement


@dataclass(frozen=True, kw_only=True)
class Settings:
    parts: int8_parts.PartSettings
    machine: Mapping[str, Any]  # as of `packages.choice.machine`
    isa_caps: tuple[str, ...]  # what holds each runtime to fewer instruction sets, in the order of `Runtime`
    seconds: float  # that measuring may take; 0: the placement that OpenVINO wants, where that is installed


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs: the machine."""
    caps = tuple(hardware.isa_cap(runtime.value) for runtime in Runtime)
    parts = int8_parts.take_settings(cfg)
    return Settings(parts=parts, machine=machine(), isa_caps=caps, seconds=speed.budget_seconds())


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write whether gates and scores are float32, and the images/s that said so."""
    begun = time.perf_counter()
    float32 = onnx.load(float32_model(inputs))
    notes, placed = list[str](), {"gates_in_float": False, "scores_in_int8": False}
    rates: dict[str, Rates] = {"rates": {}, "score_rates": {}}
    if has_scaled_gates(float32):
        placed["gates_in_float"] = True
        notes.append(_SCALED)
    elif has_gates(float32):
        choices = {"int8": placed, "float32": {**placed, "gates_in_float": True}}
        rates["rates"] = measured = _measure(settings, inputs, float32, choices)
        placed = choices["float32" if _prefers_float(measured) else "int8"]
        notes += [_describe(_GATES, placed["gates_in_float"], measured)] if measured else []
    if find_scores(float32):
        choices = {"int8": {**placed, "scores_in_int8": True}, "float32": placed}
        rates["score_rates"] = measured = _measure(settings, inputs, float32, choices)
        placed = choices["int8" if _is_worth_it(measured) else "float32"]
        notes += [_describe(_SCORES, not placed["scores_in_int8"], measured)] if measured else []
    write_notes(out, notes)
    write_json(out / PLACEMENT, placed)
    write_json(out / FIGURES, {**rates, "seconds": round(time.perf_counter() - begun, 1)})


def _measure(
    settings: Settings, inputs: Mapping[str, Path], float32: onnx.ModelProto, choices: Mapping[str, Mapping[str, bool]]
) -> Rates:
    """Return images/s by runtime and choice; runtimes that cannot run all are left out, and all without any time."""
    if not settings.seconds:
        return {}
    # Neither the values of weights nor of biases change the speed.
    parts = replace(int8_parts.load(settings.parts, inputs, float32), rounded={}, means=None)
    with tempfile.TemporaryDirectory() as folder:
        candidates = []
        for name, placed in choices.items():
            path = Path(folder) / f"{name}.onnx"
            gates, scores = placed["gates_in_float"], placed["scores_in_int8"]
            save_model(assemble(float32, replace(parts, gates_in_float=gates, scores_in_int8=scores)).model, path)
            candidates += [Candidate(runtime, "int8", path) for runtime in installed_runtimes()]
        together = _rates(candidates, settings.seconds)
        if together:
            return together
        found: dict[str, Mapping[str, float]] = {}
        for runtime in installed_runtimes():
            found |= _rates([each for each in candidates if each.runtime is runtime], settings.seconds)
        return found


def _rates(candidates: Sequence[Candidate], budget_s: float) -> Rates:
    """Return images/s by runtime and placement, in a process of its own; nothing where that was lost."""
    try:
        rates = isolated.call(speed.measure, candidates, budget_s, seconds=4 * budget_s + _MOST_S)
    except (isolated.LostError, BackendError) as err:
        console.detail(f"placements were not measured: {err}")
        return {}
    found: dict[str, dict[str, float]] = {}
    for each, of_rounds in zip(candidates, rates.rounds, strict=True):
        if of_rounds:
            found.setdefault(each.runtime.value, {})[each.model.stem] = round(median(of_rounds), 2)
    return found


def _prefers_float(measured: Rates) -> bool:
    if not measured:
        return choose(Runtime.AUTO) is Runtime.OPENVINO and not hardware.is_arm()
    return _best(measured, "float32") >= _EQUAL * _best(measured, "int8")


def _is_worth_it(measured: Rates) -> bool:
    return bool(measured) and _best(measured, "int8") >= _WORTH * _best(measured, "float32")


def _best(measured: Rates, name: str) -> float:
    return max(each[name] for each in measured.values())


def _describe(what: str, in_float: bool, measured: Rates) -> str:
    figures = "; ".join(
        f"{each['float32']:.4g} images/s so, {each['int8']:.4g} in int8, in {name}"
        if in_float
        else f"{each['int8']:.4g} images/s so, {each['float32']:.4g} in float32, in {name}"
        for name, each in measured.items()
    )
    return f"{what} are {'float32' if in_float else 'int8'}: {figures}"
