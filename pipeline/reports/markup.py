"""The parts of the pages: frame, tables, charts. All text is escaped here."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.artefacts import whole_file
from pipeline.errors import DataError
from pipeline.packages.package import REPORT, Package
from pipeline.run.sweep import Point

_CHART = (560, 300)  # px
_HISTOGRAM = (220, 64)  # px
_MARK = 2  # px, width of a threshold
_COLOURS = {"openvino": "#0b6bcb", "onnxruntime": "#c2571a"}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #d8dee4; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .25rem .9rem .25rem 0; vertical-align: top; }
th { font-weight: 600; color: #57626d; } td { font-variant-numeric: tabular-nums; }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; width: 9.5rem; font-size: .8rem; }
figure img { width: 128px; height: 128px; object-fit: contain; background: #eef1f4; display: block; }
figure.wide { width: 14rem; overflow-wrap: anywhere; } summary { cursor: pointer; }
.won { color: #1a7f37; } .lost { color: #b3261e; } .note { background: #fff6d6; padding: .5rem .8rem; }
.bad { background: #fbe3e1; border-left: .4rem solid #b3261e; padding: .6rem .8rem; font-weight: 600; }
.mono { font-family: ui-monospace, monospace; font-size: .85rem; overflow-wrap: anywhere; }
"""


def write(path: Path, title: str, body: Iterable[str]) -> None:
    """Write a page; the file is complete or absent.

    Raises:
        DataError: the file cannot be written.
    """
    head = f'<meta charset="utf-8"><title>{text(title)}</title><meta name="viewport" content="width=device-width">'
    content = f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head><body>{"".join(body)}</body>'
    try:
        with whole_file(path) as scratch:
            scratch.write_text(f"{content}</html>\n", encoding="utf-8", errors="backslashreplace")
    except OSError as err:
        raise DataError(f"--report {path}: cannot be written ({err.strerror}); give another") from None


def text(content: str) -> str:
    """Return text escaped for HTML: names of files and classes come from users."""
    return html.escape(content, quote=True)


def note(content: str) -> str:
    return f'<p class="note">{text(content)}</p>'


def warning(content: str) -> str:
    """Return a text marked as important."""
    return f'<p class="bad">{text(content)}</p>'


def proof(proven: Mapping[str, Any]) -> str:
    """Return the table of a report's `proof`: float32 beside exact arithmetic and each runtime."""
    rows = []
    for name, each in [("exact arithmetic", proven["exact"]), *proven["runtimes"].items()]:
        figures = each.get("float32", each)
        shown = [each["verdict"], "", "", "", ""]
        if "images" in figures:
            decibels = "no noise" if figures["sqnr_db"] is None else f"{figures['sqnr_db']:.1f} dB"
            kl = "-" if figures["kl"] is None else f"{figures['kl']:.5f}"
            beside = "" if each is figures else "equal" if each["sqnr_db"] is None else f"{each['sqnr_db']:.1f} dB"
            shown[1:] = [f"{figures['same_answers']} of {figures['images']}", decibels, kl, beside]
        executed = each.get("executed")
        layers = f"{executed['int8']} of {executed['weighted']}" if executed else ""
        made = " ".join([each.get("version", ""), ", ".join(each.get("instruction_sets", []))]).strip()
        rows.append([name, *shown, layers, made])
    titles = ["", "verdict", "same class as float32", "logit SQNR", "KL", "beside exact arithmetic"]
    return table([*titles, "executed in int8", "proven with"], rows)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{text(title)}</th>" for title in titles) if any(titles) else ""
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"


def fold(summary: str, content: str) -> str:
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def built(package: Package, more: Sequence[Sequence[str]] = ()) -> str:
    """Return the section that says what a package is and where it comes from."""
    facts = package.facts
    layers = package.report().get("layers") if (package.folder / REPORT).is_file() else None
    rows = [
        ["package", str(package.prefix)],
        ["model, sha256", package.digest],
        ["size", f"{package.model.stat().st_size / 1e6:.1f} MB"],
        ["input", f"{facts.get('input_dtype', 'float32')} {facts['input']}"],
        ["calibration", f"{facts.get('calibrate_mode', '-')} {facts.get('percentile', '')}"],
        ["layers in int8", f"{layers['quantized']} of {layers['weighted']}" if layers else "-"],
        ["made with", ", ".join(f"{name} {number}" for name, number in facts.get("versions", {}).items())],
        ["checked on", ", ".join(facts.get("checked_on", [])) or "-"],
        *more,
    ]
    return "<h2>What was built</h2>" + table(["", ""], rows)


def curve(points: Sequence[Point]) -> str:
    """Return the curve of each runtime as SVG: images/s over the latency that 95% of the requests stay under."""
    width, height = _CHART
    left, bottom, most, longest = 60, 40, max(p.throughput for p in points), max(p.latency_ms for p in points)

    def at(point: Point) -> tuple[float, float]:
        x = left + (width - left - 20) * point.latency_ms / longest
        return x, height - bottom - (height - bottom - 20) * point.throughput / most

    shapes = [
        f'<line x1="{left}" y1="20" x2="{left}" y2="{height - bottom}" stroke="#57626d"/>',
        f'<line x1="{left}" y1="{height - bottom}" x2="{width - 20}" y2="{height - bottom}" stroke="#57626d"/>',
        f'<text x="{left - 8}" y="26" text-anchor="end">{most:.0f}</text>',
        f'<text x="{left - 8}" y="{height - bottom}" text-anchor="end">0</text>',
        f'<text x="{width - 20}" y="{height - 18}" text-anchor="end">{longest:.0f} ms (p95 of a request)</text>',
        f'<text x="{left}" y="14">images/s</text>',
    ]
    for number, runtime in enumerate(dict.fromkeys(point.setting.runtime for point in points)):
        colour = _COLOURS.get(runtime, "#1c2733")
        own = [point for point in points if point.setting.runtime == runtime]
        for instances in dict.fromkeys(point.setting.instances for point in own):
            line = sorted(at(point) for point in own if point.setting.instances == instances)
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
            shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for point in own:
            x, y = at(point)
            told = f"{point.setting.flags()}: {point.throughput:.1f} images/s, {point.latency_ms:.1f} ms"
            shapes.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{text(told)}</title></circle>'
            )
        # Below the curves, which rise to the right.
        place = f'x="{width - 20}" y="{height - bottom - 40 + 18 * number}" text-anchor="end"'
        shapes.append(f'<text {place} fill="{colour}">{text(runtime)}</text>')
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" font-size="12">{"".join(shapes)}</svg>'


def histogram(counts: Sequence[int], first: float, last: float, marks: Sequence[float]) -> str:
    """Return a histogram as SVG: counts of bins of equal width from `first` to `last`, logarithmic; marks in red."""
    width, height = _HISTOGRAM
    most = math.log1p(max(counts, default=0)) or 1.0
    step = width / max(1, len(counts))
    tops = [height - height * math.log1p(count) / most for count in counts]
    outline = " ".join(f"{i * step:.1f},{y:.1f} {(i + 1) * step:.1f},{y:.1f}" for i, y in enumerate(tops))
    shapes = [f'<polygon points="0,{height} {outline} {width},{height}" fill="#9db8d2"/>']
    span = last - first
    for mark in marks:
        x = (width - _MARK) * min(1.0, max(0.0, (mark - first) / span)) if span > 0 else 0.0
        shapes.append(f'<rect x="{x:.0f}" width="{_MARK}" height="{height}" fill="#b3261e"/>')
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}">{"".join(shapes)}</svg>'
