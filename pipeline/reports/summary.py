"""The lines that end a build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.building import Built
from pipeline.packages.package import open_package
from pipeline.proof import verdicts


def summarize(built: Built) -> list[str]:
    """Return the lines that end a build."""
    package = open_package(built.prefix)
    report = package.report()
    layers = report.get("layers")
    counts_of_layers = f" {layers['quantized']} of {layers['weighted']} layers" if layers else ""
    agreement = ", ".join(
        f"{counts['agreeing']}/{counts['images']} in {runtime}" for runtime, counts in report["agreement"].items()
    )
    size = package.model.stat().st_size / 1e6
    return [
        *_tuned(report.get("accuracy")),
        f"{package.precision}{counts_of_layers}, {size:.1f} MB; "
        f"same class as float32 on {'calibration images' if package.has_images else 'noise'}: {agreement}",
        *verdicts.describe(report["proof"]),
        f"package {built.prefix}   ({built.seconds:.1f} s)",
    ]


def _tuned(outcome: Mapping[str, Any] | None) -> list[str]:
    """Return what the search for accuracy tried: a line for each activation that it left in float or rejected."""
    if not outcome:
        return []
    lines = [f"accuracy, on {outcome['images']} calibration images in {outcome['runtime']}:"]
    for step in outcome["steps"]:
        figures = step["figures"]
        speed = "   -" if figures["speed"] is None else f"{figures['speed']:.2f}"
        change = "" if figures["drop"] is None else f"  change in top-1 {0.0 - figures['drop']:+.2f}"
        what = f"{step['activation']} {how_of(step)}" if step["activation"] else "int8"
        lines.append(
            f"  agreement {figures['agreement']:6.2f}%{change}  KL {figures['kl']:.5f}  {figures['sqnr_db']:.1f} dB  "
            f"speed {speed}  {what}{'' if step['kept'] else ' (not kept)'}"
        )
    goal = ", ".join(f"{key} {value}" for key, value in outcome["goal"].items() if value is not None)
    return [*lines, f"  goal {'reached' if outcome['reached'] else 'NOT reached; best so far kept'} ({goal})"]


def how_of(step: Mapping[str, Any]) -> str:
    """Return what a trial did to its activation; earlier versions only told whether it was split."""
    how = str(step.get("how", "split" if step.get("split") else "in float"))
    channels = f", {step['channels']} channels" if step.get("channels") else ""
    given_up = "; ".join(f"{each['activation']} {how_of(each)}" for each in step.get("without", ()))
    return f"{how}{channels}{f', in the place of {given_up}' if given_up else ''}"
