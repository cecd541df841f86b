"""Place: whether what lies between convolutions and gates is int8 or float32: SiLU, GELU, HardSwish, SE blocks.

The graph does not tell which is faster: OpenVINO computes such activations within the convolution where no quantizer is
between, ONNX Runtime computes the convolution in float32 there. So both models are made and run in turn, in every
installed runtime, and the placement whose best runtime is the faster is taken. Fewer quantizers are not less accurate.
Gates whose channels differ so much that `gate_scaling` scaled them are float32 in any case: in int8 they would lose
what that is for.
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
from pipeline.quant.float_parts import has_gates
from pipeline.quant.gate_scaling import has_scaled_gates
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import choose, installed_runtimes
from pipeline.stages import int8_parts
from pipeline.stages.artefact_names import FIGURES, PLACEMENT, float32_model, write_notes
from pipeline.terminal import console

_EQUAL = 0.97  # of the speed of int8 gates: below, those in float32 are slower beyond what a machine wanders by
_SCALED = "gates (SiLU, GELU, HardSwish, squeeze-and-excitation) are float32: their channels differ too much for 8 bits"
_MOST_S = 600.0  # beyond what `speed.measure` allows itself, for loading the models


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
    """Write whether the gates stay float32, and the images/s that said so."""
    begun = time.perf_counter()
    float32 = onnx.load(float32_model(inputs))
    in_float, measured = False, {}
    if has_scaled_gates(float32):
        in_float = True
        write_notes(out, [_SCALED])
    elif has_gates(float32):
        measured = _measure(settings, inputs, float32) if settings.seconds else {}
        in_float = _prefers_float(measured)
        write_notes(out, [_describe(in_float, measured)] if measured else [])
    write_json(out / PLACEMENT, {"gates_in_float": in_float})
    write_json(out / FIGURES, {"rates": measured, "seconds": round(time.perf_counter() - begun, 1)})


def _measure(settings: Settings, inputs: Mapping[str, Path], float32: onnx.ModelProto) -> dict[str, dict[str, float]]:
    """Return images/s by runtime, of gates in int8 and in float32; runtimes that cannot run both are left out."""
    # Neither the values of weights nor of biases change the speed.
    parts = replace(int8_parts.load(settings.parts, inputs, float32), rounded={}, means=None)
    with tempfile.TemporaryDirectory() as folder:
        candidates = []
        for name, in_float in (("int8", False), ("float32", True)):
            path = Path(folder) / f"{name}.onnx"
            save_model(assemble(float32, replace(parts, gates_in_float=in_float)).model, path)
            candidates += [Candidate(runtime, "int8", path) for runtime in installed_runtimes()]
        together = _rates(candidates, settings.seconds)
        if together:
            return together
        found: dict[str, dict[str, float]] = {}
        for runtime in installed_runtimes():
            found |= _rates([each for each in candidates if each.runtime is runtime], settings.seconds)
        return found


def _rates(candidates: Sequence[Candidate], budget_s: float) -> dict[str, dict[str, float]]:
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


def _prefers_float(measured: Mapping[str, Mapping[str, float]]) -> bool:
    if not measured:
        return choose(Runtime.AUTO) is Runtime.OPENVINO and not hardware.is_arm()
    best = {name: max(each[name] for each in measured.values()) for name in ("int8", "float32")}
    return best["float32"] >= _EQUAL * best["int8"]


def _describe(in_float: bool, measured: Mapping[str, Mapping[str, float]]) -> str:
    figures = "; ".join(
        f"{each['float32']:.4g} images/s so, {each['int8']:.4g} in int8, in {name}"
        if in_float
        else f"{each['int8']:.4g} images/s so, {each['float32']:.4g} in float32, in {name}"
        for name, each in measured.items()
    )
    return f"gates (SiLU, GELU, HardSwish, squeeze-and-excitation) are {'float32' if in_float else 'int8'}: {figures}"
