"""Analyze: what each quantizer of an int8 package costs in accuracy, and how much work would go to float without it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from pipeline.data import preprocess
from pipeline.data.calibration_list import choose_evenly, read_calibration_list
from pipeline.errors import DataError
from pipeline.packages.package import CALIBRATION, THRESHOLDS, Package
from pipeline.proof import agreement, verdicts
from pipeline.proof.verdicts import Figures, Verdict
from pipeline.quant.assemble import Parts
from pipeline.quant.graphs import work_of_layers
from pipeline.quant.qmath import Range
from pipeline.quant.sensitivity import Kind, QuantizerCost, Sensitivity
from pipeline.quant.splitting import read_splits, split
from pipeline.runtimes.opening import installed_runtimes
from pipeline.terminal.progress import progress_bar

IMAGES = 16


@dataclass(frozen=True)
class Row:
    """A quantizer, its cost, and its shares of the whole in %."""

    cost: QuantizerCost
    noise_percent: float  # of the noise of all quantizers
    work_percent: float  # of the network's multiply-accumulates, computed in float without it


def analyze(package: Package, images: int = IMAGES) -> list[Row]:
    """Measure every quantizer of a package on some of its calibration images, the most expensive first.

    Raises:
        DataError: the package is no int8 model, or was built on another machine.
    """
    model = package.workspace_file("quantized_from")
    if package.precision != "int8":
        raise DataError(f"-m {package.prefix}: a package of {package.precision} has no quantizers to analyze")
    if model is None:
        raise DataError(
            f"-m {package.prefix}: the float32 model it was made from is not here; build it on this machine"
        )
    float32 = onnx.load(model)
    bounds = json.loads((package.folder / THRESHOLDS).read_text(encoding="utf-8"))
    parts = Parts(ranges={name: Range(**each) for name, each in bounds.items()}, per_channel=True)
    tuned = package.report().get("accuracy") or {}
    float32, parts = split(float32, parts, read_splits(tuned.get("split_activations", {}), parts.ranges))
    sensitivity = Sensitivity(float32, onnx.load(package.model), parts.ranges)
    spec = package.preprocess()
    listed = read_calibration_list(package.folder / CALIBRATION)
    shown = [
        preprocess.load(spec, listed[index].source.content(), raw=package.takes_pixels)
        for index in choose_evenly(len(listed), images)
    ]
    with progress_bar(len(sensitivity), "analyze", "quantizer") as progress:
        costs = sensitivity.measure(shown, progress.update)
    noise, work = sum(cost.noise for cost in costs), work_of_layers(float32)
    return [
        Row(
            cost,
            100 * cost.noise / noise if noise else 0.0,
            100 * sum(work[name] for name in cost.readers) / max(1, sum(work.values())),
        )
        for cost in costs
    ]


def split_noise(package: Package, images: int = IMAGES) -> list[str]:
    """Return a line on what quantization costs, and one a runtime on what its kernels cost on this CPU.

    Raises:
        DataError: as `analyze`.
    """
    model = package.workspace_file("float32_model")
    if model is None:
        raise DataError(f"-m {package.prefix}: its float32 model is not here; build it on this machine")
    spec, scores = package.preprocess(), package.scores
    listed = read_calibration_list(package.folder / CALIBRATION)
    chosen = [listed[index] for index in choose_evenly(len(listed), images)]
    float32 = agreement.run_exact(model, agreement.prepare(chosen, spec))
    batches = agreement.prepare(chosen, spec, raw=package.takes_pixels)
    exact = agreement.run_exact(package.model, batches)
    if float32.outputs is None or exact.outputs is None:
        return [f"exact arithmetic cannot be computed here: it {exact.reason or float32.reason}"]
    quantized = verdicts.compare(float32.outputs, exact.outputs, scores)
    lines = [f"quantization (exact arithmetic against float32): {quantized}"]
    for runtime in installed_runtimes():
        wide = package.has_wide_weights
        found = agreement.run_in(
            runtime, package.model, batches, wide_weights=wide, counts=False, exact_seconds=exact.seconds
        )
        wanted = agreement.exact_of(runtime, package.model, batches, exact)
        name = f"kernels of this CPU ({runtime.value} against exact arithmetic)"
        if found.outputs is None or wanted.outputs is None:
            lines.append(f"{name}: it {found.reason or wanted.reason}")
            continue
        beside_float32 = verdicts.compare(float32.outputs, found.outputs, scores)
        own = verdicts.compare(float32.outputs, wanted.outputs, scores)
        judged = verdicts.judge_runtime(beside_float32, own, agreement.kernel_cause(runtime, wide_weights=wide))
        verdict = "" if judged.verdict is Verdict.GOOD else f"; {judged.verdict.value}: {judged.cause}"
        beside = f"both together {_decibels(beside_float32)}"
        lines.append(f"{name}: {verdicts.compare(wanted.outputs, found.outputs, scores)}; {beside}{verdict}")
    return lines


def _decibels(figures: Figures) -> str:
    return f"{figures.sqnr_db:.1f} dB" if figures.sqnr_db is not None else str(figures)


def describe(rows: Sequence[Row], count: int) -> list[str]:
    """Return the table that people read: the `count` most expensive."""
    if not rows:
        return ["nothing is quantized: the network has no layer in int8, so nothing can be ranked"]
    lines = ["   noise   logit SQNR   KL alone  in float  quantizer"]
    for row in rows[:count]:
        cost = row.cost
        what = "weights of" if cost.kind is Kind.WEIGHTS else "activation"
        figures = f"{row.noise_percent:7.1f}%  {cost.sqnr_db:8.1f} dB  {cost.kl:9.6f}  {row.work_percent:7.2f}%"
        lines.append(f"{figures}  {what} {cost.name}")
    of_weights = sum(row.noise_percent for row in rows if row.cost.kind is Kind.WEIGHTS)
    of_activations = sum(row.noise_percent for row in rows if row.cost.kind is not Kind.WEIGHTS)
    rest = sum(row.noise_percent for row in rows[count:])
    return [
        *lines,
        f"{rest:7.1f}%  in {max(0, len(rows) - count)} others; "
        f"of all, weights {of_weights:.1f}%, activations {of_activations:.1f}%",
    ]


def as_dict(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return all rows as plain data, for `--json`."""
    return [
        {
            **asdict(row.cost),
            "kind": row.cost.kind.value,
            "readers": list(row.cost.readers),
            "noise_percent": round(row.noise_percent, 4),
            "work_percent": round(row.work_percent, 4),
        }
        for row in rows
    ]
