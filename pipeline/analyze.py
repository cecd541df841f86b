"""Analyze: what each quantizer of an int8 package costs in accuracy, and how much work would go to float without it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from pipeline import preprocess
from pipeline.data.calibration_list import read_calibration_list, spread
from pipeline.errors import DataError
from pipeline.package import CALIBRATION, THRESHOLDS, Package
from pipeline.progress import progress_bar
from pipeline.quant.graphs import work_of_layers
from pipeline.quant.qmath import Range
from pipeline.sensitivity import Cost, Kind, Sensitivity

IMAGES = 16


@dataclass(frozen=True)
class Row:
    """A quantizer, its cost, and its shares of the whole in %."""

    cost: Cost
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
    ranges = json.loads((package.folder / THRESHOLDS).read_text(encoding="utf-8"))
    sensitivity = Sensitivity(
        float32, onnx.load(package.model), {name: Range(**bounds) for name, bounds in ranges.items()}
    )
    spec = package.preprocess()
    listed = read_calibration_list(package.folder / CALIBRATION)
    shown = [
        preprocess.load(spec, listed[index].source.content(), raw=package.takes_pixels)
        for index in spread(len(listed), images)
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


def describe(rows: Sequence[Row], count: int) -> list[str]:
    """Return the table that people read: the `count` most expensive."""
    lines = ["   noise   logit SQNR   KL alone  in float  quantizer"]
    for row in rows[:count]:
        cost = row.cost
        what = "weights of" if cost.kind is Kind.WEIGHTS else "activation"
        figures = f"{row.noise_percent:7.1f}%  {cost.sqnr_db:8.1f} dB  {cost.kl:9.6f}  {row.work_percent:7.2f}%"
        lines.append(f"{figures}  {what} {cost.name}")
    of_weights = sum(row.noise_percent for row in rows if row.cost.kind is Kind.WEIGHTS)
    rest = sum(row.noise_percent for row in rows[count:])
    return [
        *lines,
        f"{rest:7.1f}%  in {max(0, len(rows) - count)} others; "
        f"of all, weights {of_weights:.1f}%, activations {100 - of_weights:.1f}%",
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
