"""Trial: how fast the int8 model is here, beside float32 and in each runtime that its proof left.

The figures differ from run to run, so they are not part of the artefact's key; the machine is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artefacts import write_json
from pipeline.config.build_config import BuildConfig
from pipeline.errors import BackendError
from pipeline.host import hardware, isolated
from pipeline.packages.choice import machine
from pipeline.proof import speed
from pipeline.proof.speed import Candidate, Rates
from pipeline.runtimes.base import Runtime
from pipeline.stages.artefact_names import CHECK, FIGURES, MACHINE, MODEL
from pipeline.terminal import console

_MOST_S = 600.0  # in addition to the limit of `speed.measure`, for loading the models


@dataclass(frozen=True, kw_only=True)
class Settings:
    machine: Mapping[str, Any]  # as of `packages.choice.machine`
    isa_caps: tuple[str, ...]  # what holds each runtime to fewer instruction sets, in the order of `Runtime`
    seconds: float  # that the trial may take


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs: the machine, and nothing of the build file."""
    caps = tuple(hardware.isa_cap(runtime.value) for runtime in Runtime)
    return Settings(machine=machine(), isa_caps=caps, seconds=speed.budget_seconds())


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the machine, and what was measured on it."""
    begun = time.perf_counter()
    proven = json.loads((inputs["prove"] / CHECK).read_text(encoding="utf-8"))["proof"]["runtimes"]
    candidates = []
    for name, each in proven.items():
        if each["verdict"] == "good":
            candidates.append(Candidate(Runtime(name), "int8", inputs["quantize"] / MODEL))
            candidates.append(Candidate(Runtime(name), "float32", inputs["export"] / MODEL))
    write_json(out / MACHINE, settings.machine)
    found = measure(candidates, settings.seconds)
    if found is not None:
        found["machine"] = settings.machine
    write_json(out / FIGURES, {"speed": found, "seconds": round(time.perf_counter() - begun, 1)})


def measure(candidates: Sequence[Candidate], budget_s: float) -> dict[str, Any] | None:
    """Measure candidates in a separate process, each runtime alone if they fail together; None: both fail."""
    names = list(dict.fromkeys(each.runtime for each in candidates))
    groups = [names] if len(names) < 2 else [names, *([name] for name in names)]
    alone: list[dict[str, Any]] = []
    for group in groups:
        chosen = [each for each in candidates if each.runtime in group]
        if not chosen:
            continue
        try:
            rates: Rates = isolated.call(speed.measure, chosen, budget_s, seconds=4 * budget_s + _MOST_S)
        except (isolated.LostError, BackendError) as err:
            console.detail(f"speed in {', '.join(name.value for name in group)} was not measured: {err}")
            console.causes(err)
            continue
        if not rates.rounds[0]:
            continue
        found = speed.record(chosen, rates)
        if len(group) == len(names):
            return found
        alone.append(found)
    if not alone:
        return None
    # Runtimes measured one after the other are not compared.
    runtimes = {name: each for found in alone for name, each in found["runtimes"].items()}
    return {**alone[0], "runtimes": runtimes, "fastest": alone[0]["fastest"] if len(alone) == 1 else None}
