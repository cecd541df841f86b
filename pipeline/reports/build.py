"""The page of a build: what was made, how close it is to float32, each layer's error, each activation's histogram."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.building import Built
from pipeline.packages.package import THRESHOLDS, Package, open_package
from pipeline.proof import placements, verdicts
from pipeline.quant.observers import ObserverSet
from pipeline.quant.qmath import max_range
from pipeline.quant.rounding import read_rounded
from pipeline.quant.search import linear_histogram
from pipeline.reports import markup
from pipeline.reports.summary import how_of
from pipeline.stages.artefact_names import FIGURES, OBSERVERS, WEIGHTS

_BINS = 110


def write(built: Built, path: Path) -> None:
    """Write the page; raises DataError where it cannot be written."""
    package = open_package(built.prefix)
    markup.write(path, f"{package.name}: build", _body(built, package))


def _body(built: Built, package: Package) -> Iterator[str]:
    yield f"<h1>{markup.text(package.name)}: {markup.text(package.precision)} package</h1>"
    if package.uses_sample:
        yield markup.note("Sample weights, sample images: the accuracy is that of the sample.")
    report = package.report()
    for verdict, sentence in verdicts.warnings(report["proof"]):
        yield markup.warning(f"{verdict}: {sentence}")
    yield markup.built(package)
    yield from _proof(package, report)
    yield from _placements(package)
    yield from _search(report.get("accuracy"))
    yield from _stages(built)
    yield from _layers(built.stages)
    yield from _activations(built.stages, package)


def _proof(package: Package, report: Mapping[str, Any]) -> Iterator[str]:
    images = "calibration images" if package.has_images else "noise"
    yield f"<h2>Beside float32, on {images}</h2>{markup.proof(report['proof'])}"
    yield "<p>A check that every build makes. For the accuracy, see <code>eval --report</code>.</p>"


def _placements(package: Package) -> Iterator[str]:
    found = package.placements()
    if found:
        yield "<h2>Measured in int8 and in float32</h2>"
        for what, each in found.items():
            yield markup.note(placements.describe(what, each))


def _search(outcome: Mapping[str, Any] | None) -> Iterator[str]:
    if not outcome:
        return
    yield f"<h2>Search for a goal{'' if outcome['reached'] else ': not reached, the best so far was kept'}</h2>"
    rows = [
        [
            step["activation"] or "everything in int8",
            how_of(step) if step["activation"] else "",
            f"{step['figures']['agreement']:.2f}%",
            f"{step['figures']['kl']:.5f}",
            f"{step['figures']['sqnr_db']:.1f} dB",
            "-" if step["figures"]["speed"] is None else f"{step['figures']['speed']:.2f}",
            "yes" if step["kept"] else "",
        ]
        for step in outcome["steps"]
    ]
    yield markup.table(["activation", "as", "agreement", "KL", "logit SQNR", "speed", "kept"], rows)


def _stages(built: Built) -> Iterator[str]:
    rows = []
    for name, folder in built.stages.items():
        figures = {}
        if (folder / FIGURES).is_file():
            figures = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
        seconds = f"{built.stage_seconds[name]:.1f} s" if name in built.stage_seconds else "up to date"
        rows.append([name, seconds, f"{figures['peak_memory_mib']} MiB" if "peak_memory_mib" in figures else ""])
    yield "<h2>Steps</h2>" + markup.table(["", "this time", "peak memory"], rows)


def _layers(stages: Mapping[str, Path]) -> Iterator[str]:
    if "round" not in stages:
        return
    layers = sorted(read_rounded(stages["round"] / WEIGHTS).items(), key=lambda item: item[1].sqnr_db)
    rows = [[name, f"{layer.sqnr_db:.1f} dB", f"{layer.nearest_sqnr_db:.1f} dB"] for name, layer in layers]
    titles = ["layer", "output SQNR of its rounded weights", "of nearest rounding"]
    yield "<h2>What rounding costs each layer</h2><p>The least accurate first.</p>" + markup.table(titles, rows[:12])
    if len(rows) > 12:
        yield markup.fold(f"{len(rows) - 12} others", markup.table(titles, rows[12:]))


def _activations(stages: Mapping[str, Path], package: Package) -> Iterator[str]:
    if "calibrate" not in stages:
        return
    observers, images = ObserverSet.load(stages["calibrate"] / OBSERVERS)
    ranges = json.loads((package.folder / THRESHOLDS).read_text(encoding="utf-8"))
    yield f"<h2>{len(ranges)} activations over {images} images</h2>"
    yield "<p>Values from the least to the greatest, their number on a logarithmic scale; red: the thresholds.</p>"
    yield '<div class="tiles">'
    for name, bounds in ranges.items():
        seen = observers.observers.get(name)
        if seen is None:
            continue
        whole = max_range(seen.lowest, seen.highest)
        counts = [round(count) for count in linear_histogram(seen.counts, whole, _BINS)]
        drawing = markup.histogram(counts, whole.low, whole.high, [bounds["low"], bounds["high"]])
        told = f"{seen.lowest:.3g} to {seen.highest:.3g}; kept {bounds['low']:.3g} to {bounds['high']:.3g}"
        caption = f'<span class="mono">{markup.text(name)}</span><br>{markup.text(told)}'
        yield f'<figure class="wide">{drawing}<figcaption>{caption}</figcaption></figure>'
    yield "</div>"
