"""Report: one self-contained HTML page of an evaluation, to look at and to send on. It loads nothing from anywhere."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from pipeline import sweep
from pipeline.accuracy import Accuracy
from pipeline.artefacts import whole_file
from pipeline.data.npz import read_image_npz
from pipeline.errors import DataError
from pipeline.evaluate import Comparison, Evaluation, Flip
from pipeline.package import REPORT, THRESHOLDS, Package

_THUMBNAIL = 128  # px, longer side
_MOST_FLIPS = 200  # shown; a page of more would not load
_CHART = (560, 300)  # px
_COLOURS = {"openvino": "#0b6bcb", "onnxruntime": "#c2571a"}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #d8dee4; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .25rem .9rem .25rem 0; vertical-align: top; }
th { font-weight: 600; color: #57626d; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.flips { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; width: 9.5rem; font-size: .8rem; }
figure img { width: 128px; height: 128px; object-fit: contain; background: #eef1f4; display: block; }
.won { color: #1a7f37; } .lost { color: #b3261e; } .note { background: #fff6d6; padding: .5rem .8rem; }
.mono { font-family: ui-monospace, monospace; font-size: .85rem; overflow-wrap: anywhere; }
"""


def write(evaluation: Evaluation, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    page = "".join(_page(evaluation))
    try:
        with whole_file(path) as scratch:
            scratch.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as err:
        raise DataError(f"--report {path}: cannot be written ({err.strerror}); give another") from None


def _page(evaluation: Evaluation) -> Iterator[str]:
    package = evaluation.package
    title = package.name if package else "Evaluation"
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
    yield f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
    yield f"<h1>{_text(title)}: {_text(evaluation.precision)} beside float32</h1>"
    if evaluation.facts["sample"]:
        yield '<p class="note">Sample weights, sample images: the accuracy is that of the sample.</p>'
    yield from (f'<p class="note">{_text(note)}</p>' for note in evaluation.notes)
    yield from _accuracy(evaluation)
    if evaluation.reference is not None:
        yield from _comparison(evaluation.reference)
        yield from _flips(evaluation, evaluation.reference)
    if package is not None:
        yield from _speed(package)
        yield from _provenance(package, evaluation)
    yield "</body></html>\n"


def _accuracy(evaluation: Evaluation) -> Iterator[str]:
    rows = [(evaluation.precision, evaluation.top1, evaluation.top5)]
    if evaluation.reference is not None:
        rows.insert(0, ("float32", evaluation.reference.top1, evaluation.reference.top5))
    runtime = evaluation.facts.get("runtime", "another program")
    yield f"<h2>Accuracy</h2><p>{evaluation.top1.count} images, answers of {_text(str(runtime))}.</p>"
    cells = [[name, _share(top1), _share(top5)] for name, top1, top5 in rows]
    yield _table(["", "top-1 (95% interval)", "top-5 (95% interval)"], cells)


def _share(accuracy: Accuracy) -> str:
    low, high = accuracy.interval
    return f"{accuracy.percent:.2f}% ({low:.2f} to {high:.2f})"


def _comparison(reference: Comparison) -> Iterator[str]:
    low, high = reference.drop_interval
    drop = 100 * (reference.right_to_wrong - reference.wrong_to_right) / reference.top1.count
    rows = [
        ["top-1 lost", f"{drop:+.2f} points, {low:+.2f} to {high:+.2f} (exact, 95%)"],
        ["McNemar's exact test", f"p = {reference.p_value:.2g}"],
        ["same answer", _share(reference.agreement)],
        ["right to wrong, wrong to right", f"{reference.right_to_wrong}, {reference.wrong_to_right}"],
        ["KL divergence", f"{reference.divergence.kl:.5f} nats an image"],
        ["logit SQNR", f"{reference.divergence.sqnr_db:.1f} dB"],
    ]
    yield "<h2>Beside float32, image by image</h2>" + _table(["", ""], rows)


def _flips(evaluation: Evaluation, reference: Comparison) -> Iterator[str]:
    count = len(reference.flips)
    yield f"<h2>{count} answers changed</h2>"
    if count > _MOST_FLIPS:
        yield f"<p>The first {_MOST_FLIPS} of them.</p>"
    yield '<div class="flips">'
    for flip in reference.flips[:_MOST_FLIPS]:
        yield _figure(flip, [known.name for known in evaluation.classes])
    yield "</div>"


def _figure(flip: Flip, names: Sequence[str]) -> str:
    kind = "lost" if flip.float32 == flip.truth else "won" if flip.answer == flip.truth else ""
    said = {"lost": "right to wrong", "won": "wrong to right", "": "both wrong"}[kind]
    lines = [
        f'<b class="{kind}">{said}</b>',
        f"is: {_text(names[flip.truth])}",
        f"float32: {_text(names[flip.float32])}",
        f"now: {_text(names[flip.answer])}",
        f'<span class="mono">{_text(flip.name)}</span>',
    ]
    return f"<figure>{_thumbnail(flip.image)}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def _thumbnail(path: Path) -> str:
    try:
        image = Image.fromarray(read_image_npz(path).transpose(1, 2, 0))
    except DataError:
        return '<img alt="the image is gone">'
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode("ascii")}">'


def _speed(package: Package) -> Iterator[str]:
    try:
        points = sweep.recall_points(package)
    except DataError:
        points = []
    if points:
        yield "<h2>Throughput and latency on this machine</h2>" + _chart(points)


def _chart(points: Sequence[sweep.Point]) -> str:
    """Return the curve of each runtime as SVG: images/s over the latency that 95% of the requests stay under."""
    width, height = _CHART
    left, bottom, most, longest = 60, 40, max(p.throughput for p in points), max(p.latency_ms for p in points)

    def at(point: sweep.Point) -> tuple[float, float]:
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
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{_text(told)}</title></circle>'
            )
        shapes.append(f'<text x="{left + 20}" y="{40 + 18 * number}" fill="{colour}">{_text(runtime)}</text>')
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" font-size="12">{"".join(shapes)}</svg>'


def _provenance(package: Package, evaluation: Evaluation) -> Iterator[str]:
    facts = package.facts
    layers = package.report().get("layers") if (package.folder / REPORT).is_file() else None
    rows = [
        ["package", str(package.prefix)],
        ["model, sha256", package.digest],
        ["size", f"{package.model.stat().st_size / 1e6:.1f} MB"],
        ["input", f"{facts.get('input_dtype', 'float32')} {facts['input']}"],
        ["calibration", f"{facts.get('calibrate_mode')} {facts.get('percentile', '')}"],
        ["layers in int8", f"{layers['quantized']} of {layers['weighted']}" if layers else "-"],
        ["made with", ", ".join(f"{name} {number}" for name, number in facts.get("versions", {}).items())],
        ["results of", str(evaluation.facts.get("datalist", "-"))],
    ]
    yield "<h2>What was built</h2>" + _table(["", ""], rows)
    path = package.folder / THRESHOLDS
    if path.is_file():
        ranges = json.loads(path.read_text(encoding="utf-8"))
        cells = [[name, f"{bounds['low']:.4g}", f"{bounds['high']:.4g}"] for name, bounds in ranges.items()]
        table = _table(["activation", "low", "high"], cells)
        yield f"<details><summary>{len(cells)} thresholds</summary>{table}</details>"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(title)}</th>" for title in titles) if any(titles) else ""
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"


def _text(text: str) -> str:
    """Return text as HTML shows it: names of files and classes are anybody's."""
    return html.escape(text, quote=True)
