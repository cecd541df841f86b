"""The page of an evaluation: accuracy beside float32, the images whose answer changed, speed, provenance."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from pipeline.data.npz import read_image_npz
from pipeline.data.storage import Location
from pipeline.errors import DataError
from pipeline.measure.accuracy import Accuracy
from pipeline.measure.comparison import AnswerComparison, Flip
from pipeline.measure.evaluation import Evaluation
from pipeline.onnx_models.scores import Scores
from pipeline.packages.package import THRESHOLDS, Package
from pipeline.reports import markup
from pipeline.run import sweep_record
from pipeline.terminal.counts import counted

_THUMBNAIL = 128  # px, longer side
_MOST_FLIPS = 200  # images shown; a page with more would be too large to load


def write(evaluation: Evaluation, path: Path) -> None:
    """Write the page; raises DataError where it cannot be written."""
    title = evaluation.package.name if evaluation.package else "Evaluation"
    markup.write(path, title, _body(evaluation, title))


def _body(evaluation: Evaluation, title: str) -> Iterator[str]:
    yield f"<h1>{markup.text(title)}: {markup.text(evaluation.precision)} beside float32</h1>"
    if evaluation.facts["sample"]:
        yield markup.note("Sample weights, sample images: the accuracy is that of the sample.")
    yield from map(markup.warning, evaluation.doubts)
    yield from map(markup.note, evaluation.notes)
    yield from _accuracy(evaluation)
    if evaluation.reference is not None:
        yield from _comparison(evaluation, evaluation.reference)
        yield from _flips(evaluation, evaluation.reference)
    if evaluation.package is not None:
        yield from _speed(evaluation.package)
        yield markup.built(evaluation.package, [["results of", str(evaluation.facts.get("datalist", "-"))]])
        yield from _thresholds(evaluation.package)


def _accuracy(evaluation: Evaluation) -> Iterator[str]:
    rows = [(evaluation.precision, evaluation.top1, evaluation.top5)]
    if evaluation.reference is not None:
        rows.insert(0, ("float32", evaluation.reference.top1, evaluation.reference.top5))
    runtime = evaluation.facts.get("runtime", "another program")
    yield f"<h2>Accuracy</h2><p>{evaluation.top1.count} images, predicted by {markup.text(str(runtime))}.</p>"
    shown = 3 if evaluation.has_top5 else 2
    cells = [[name, _share(top1), _share(top5)][:shown] for name, top1, top5 in rows]
    yield markup.table(["", "top-1 (95% interval)", "top-5 (95% interval)"][:shown], cells)


def _share(accuracy: Accuracy) -> str:
    low, high = accuracy.interval
    return f"{accuracy.percent:.2f}% ({low:.2f} to {high:.2f})"


def _comparison(evaluation: Evaluation, reference: AnswerComparison) -> Iterator[str]:
    low, high = reference.change_interval
    by_label = reference.divergence.scores is Scores.SIGMOID
    rows = [
        ["change in top-1", f"{evaluation.top1_change:+.2f} points, {low:+.2f} to {high:+.2f} (95%)"],
        ["McNemar's exact test", f"p = {reference.p_value:.2g}"],
        ["same answer", _share(reference.agreement)],
        ["right to wrong, wrong to right", f"{reference.right_to_wrong}, {reference.wrong_to_right}"],
        [f"KL divergence{', sum of the labels' if by_label else ''}", f"{reference.divergence.kl:.5f} nats per image"],
        ["logit SQNR", f"{reference.divergence.sqnr_db:.1f} dB"],
    ]
    yield "<h2>Beside float32, image by image</h2>" + markup.table(["", ""], rows)


def _flips(evaluation: Evaluation, reference: AnswerComparison) -> Iterator[str]:
    count = len(reference.flips)
    yield f"<h2>{counted(count, 'answer')} changed</h2>"
    if count > _MOST_FLIPS:
        yield f"<p>The first {_MOST_FLIPS} of them.</p>"
    yield '<div class="tiles">'
    for flip in reference.flips[:_MOST_FLIPS]:
        yield _figure(flip, [known.name for known in evaluation.classes])
    yield "</div>"


def _figure(flip: Flip, names: Sequence[str]) -> str:
    kind = "lost" if flip.float32 == flip.truth else "won" if flip.answer == flip.truth else ""
    said = {"lost": "right to wrong", "won": "wrong to right", "": "both wrong"}[kind]
    lines = [
        f'<b class="{kind}">{said}</b>',
        f"is: {markup.text(names[flip.truth])}",
        f"float32: {markup.text(names[flip.float32])}",
        f"now: {markup.text(names[flip.answer])}",
        f'<span class="mono">{markup.text(flip.name)}</span>',
    ]
    return f"<figure>{_thumbnail(flip.image)}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def _thumbnail(path: Location) -> str:
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
        points = sweep_record.recall_points(package)
    except DataError:
        points = []
    if points:
        yield "<h2>Throughput and latency on this machine</h2>" + markup.curve(points)


def _thresholds(package: Package) -> Iterator[str]:
    path = package.folder / THRESHOLDS
    if path.is_file():
        ranges = json.loads(path.read_text(encoding="utf-8"))
        cells = [[name, f"{bounds['low']:.4g}", f"{bounds['high']:.4g}"] for name, bounds in ranges.items()]
        yield markup.fold(f"{len(cells)} thresholds", markup.table(["activation", "low", "high"], cells))
