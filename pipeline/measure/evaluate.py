"""Eval: top-1 and top-5 of a run, and its comparison with float32 on the same images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.documents import find_file
from pipeline.data.ground_truth import find_ground_truth, sample_key
from pipeline.data.label_check import find_guessing
from pipeline.data.labels import (
    ClassInfo,
    classes_of,
    imagenet_classes,
    read_label_list,
    usual_classes,
)
from pipeline.data.list_files import image_stem, read_lines
from pipeline.data.listed_labels import read_kept
from pipeline.data.npz import read_datalist, read_result_npz
from pipeline.errors import DataError
from pipeline.measure.accuracy import Accuracy
from pipeline.measure.comparison import AnswerComparison, compare_answers
from pipeline.measure.evaluation import Evaluation
from pipeline.measure.reference import find_reference
from pipeline.measure.result_scores import load_paired, load_ranks
from pipeline.packages.package import REPORT, Package, open_package
from pipeline.proof import verdicts
from pipeline.run import results
from pipeline.run.answer import Indices
from pipeline.run.plan import Entry
from pipeline.runtimes.base import Runtime

_LABELS = "data_prep"  # the folder of the shipped class names

FilePath = str | os.PathLike[str]


def evaluate(
    result_path: FilePath,
    *,
    datalist: FilePath | None = None,
    label: FilePath | None = None,
    val_label: FilePath | None = None,
    reference: bool | None = None,
) -> Evaluation:
    """Score a results folder, which `bench` or another program wrote.

    >>> answered = pipeline.bench(options=pipeline.BenchOptions(speed=False, results="output"))
    >>> found = pipeline.evaluate("output")
    >>> found.top1.count, found.as_dict()["int8"]["top1"]["count"]
    (8, 8)
    >>> found.top1_change  # points against float32
    0.0

    Args:
        result_path: the folder, as of `--results`.
        datalist: the datalist of the run, which is checked; needed where the folder has no record beside it.
        label: class names, a line per class (None: the package's); or lines `name index`, as `val_label`.
        val_label: ground truth, lines `name index`. None: the folders of the images, then the build's own list, then
            the official labels of ILSVRC2012_val_*.
        reference: run float32 on the same images and compare. None: where it can be done for up to 2000 images.

    Raises:
        PipelineError: results, datalist, labels or package do not fit each other.
    """
    listed = None if datalist is None else read_datalist(Path(datalist))
    run = results.read_run(Path(result_path), listed)
    package = _find_package(run.facts)
    classes, truth = _find_truth(run, package, _path(label), _path(val_label))
    notes: list[str] = []
    entries = None
    if package is not None and reference is not False:
        entries = find_reference(package, run, reference, notes)
    elif reference:
        prefix = run.facts.get("package")
        found = f"{prefix} is not here any more" if prefix else "the results do not say which package they are of"
        raise DataError(f"--reference: {found}; make them with bench")
    ranks, comparison, doubt = _rank(run, entries, package, classes, truth)
    notes += [doubt] if doubt else []
    return Evaluation(
        facts={"sample": package is not None and package.uses_sample, **run.facts},
        top1=Accuracy(int((ranks[:, 0] == truth).sum()), len(truth)),
        top5=Accuracy(int((ranks == truth[:, None]).any(axis=1).sum()), len(truth)),
        reference=comparison,
        notes=tuple(notes),
        doubts=tuple(_find_doubts(package, run.facts, comparison)),
        package=package,
        classes=classes,
    )


def _path(given: FilePath | None) -> Path | None:
    return None if given is None else Path(given)


def _find_truth(
    run: results.Run, package: Package | None, label: Path | None, val_label: Path | None
) -> tuple[tuple[ClassInfo, ...], npt.NDArray[np.intp]]:
    """Return the classes in index order, and the true class of each image by its index."""
    lines = _read_label(label)
    if _are_ground_truth(lines, run.entries):
        classes = package.classes() if package else usual_classes(read_result_npz(run.entries[0].result).shape[1])
        val_label = val_label or label
    else:
        classes = _find_classes(label, lines, package)
    images = [entry.image for entry in run.entries]
    known = find_ground_truth(images, classes, val_label, {**_read_own_labels(package), **read_kept(images)})
    return classes, np.array([known[sample_key(entry.image)] for entry in run.entries], np.intp)


def _rank(
    run: results.Run,
    reference: Sequence[Entry] | None,
    package: Package | None,
    classes: Sequence[ClassInfo],
    truth: npt.NDArray[np.intp],
) -> tuple[Indices, AnswerComparison | None, str | None]:
    """Return the best classes of each image, the comparison with float32, and reasons to doubt the labels."""
    if reference is None:
        return load_ranks(run.entries, len(classes)), None, None
    scores = None if package is None else package.scores
    ranks, reference_ranks, divergence = load_paired(run.entries, reference, len(classes), scores)
    compared = compare_answers(ranks, reference_ranks, divergence, truth, [entry.image for entry in run.entries])
    return ranks, compared, find_guessing(reference_ranks[:, 0], truth, [known.id for known in classes], "images")


def _find_doubts(
    package: Package | None, facts: Mapping[str, Any], comparison: AnswerComparison | None
) -> Iterator[str]:
    """Yield warnings where the package's proof and these answers contradict each other."""
    if package is None:
        return
    proven = package.report().get("proof") if (package.folder / REPORT).is_file() else None
    if proven is not None:
        yield from (f"{verdict}: {sentence}" for verdict, sentence in verdicts.warnings({**proven, "runtimes": {}}))
    known = [runtime for runtime in Runtime if runtime.value == facts.get("runtime") and runtime is not Runtime.AUTO]
    misfits = [misfit for runtime in known if (misfit := package.misfit(runtime))]
    yield from misfits
    if proven is not None and comparison is not None and "sqnr_db" in proven["exact"]:
        lower = verdicts.judge_evaluation(comparison.divergence.sqnr_db, proven["exact"]["sqnr_db"])
        if lower:
            yield lower


def _find_package(facts: Mapping[str, Any]) -> Package | None:
    """Return the package that made the results, if it still exists unchanged."""
    if "package" not in facts:
        return None
    prefix = Path(facts["package"])
    if not prefix.parent.is_dir():
        return None
    package = open_package(prefix)
    if package.digest != facts["model_sha256"]:
        raise DataError(f"{prefix}: was built again since these results were made; run bench again")
    return package


def _read_label(label: Path | None) -> list[str]:
    return [] if label is None else [line for line in read_lines(find_file(label, _LABELS)) if line.strip()]


def _are_ground_truth(lines: Sequence[str], entries: Sequence[Entry]) -> bool:
    """Tell lines `name index` of these images, which the documents' own script takes as `--label`, from class names."""
    stems = {entry.image.stem for entry in entries}
    fields = [line.rsplit(None, 1) for line in lines]
    return any(len(part) == 2 and part[1].isdigit() and image_stem(part[0]) in stems for part in fields)


def _find_classes(label: Path | None, names: Sequence[str], package: Package | None) -> tuple[ClassInfo, ...]:
    """Return the classes in index order: the package's, checked against `--label`, or those that `--label` names."""
    if package is None:
        if not names:
            raise DataError("the package of these results is not here; give the class names with --label FILE")
        known = imagenet_classes()
        return known if [known_class.name for known_class in known] == list(names) else classes_of(names)
    classes = package.classes()
    if names and len(names) != len(classes):
        raise DataError(f"--label {label}: {len(names)} class names, but the package has {len(classes)} classes")
    return classes


def _read_own_labels(package: Package | None) -> dict[str, int]:
    """Return the labels of the build's own evaluation images."""
    path = package.workspace_file("val_label") if package else None
    return read_label_list(path) if path else {}
