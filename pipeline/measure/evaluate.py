"""Eval: top-1 and top-5 of a run, and what a package changed against float32 on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.artefacts import file_digest, fingerprint
from pipeline.config.documents import find_file
from pipeline.config.vdsp import spec_from_vdsp_dict
from pipeline.data.label_check import find_guessing
from pipeline.data.labels import (
    ClassInfo,
    classes_of,
    ground_truth,
    image_stem,
    imagenet_classes,
    read_label_list,
    read_lines,
    sample_key,
    usual_classes,
)
from pipeline.data.npz import read_datalist, read_result_npz
from pipeline.data.storage import Location
from pipeline.errors import DataError
from pipeline.host.hardware import available_cores
from pipeline.measure.accuracy import Accuracy, drop_interval, mcnemar_p
from pipeline.onnx_models.scores import Scores
from pipeline.packages.package import REPORT, Package, open_package
from pipeline.proof import verdicts
from pipeline.quant.divergence import Divergence
from pipeline.run import results
from pipeline.run.runner import Plan, Sample
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import choose

_TOP = 5
_LABELS = "data_prep"  # the folder of the shipped class names
_RESULTS_AT_ONCE = 256  # scores of so many samples fit the cache
_REFERENCE_BATCH = 8
_REFERENCE_UNASKED = 2000  # images that float32 is run on without --reference: minutes, not hours

Ranks = npt.NDArray[np.intp]  # [samples, up to 5], classes by falling score


@dataclass(frozen=True)
class Flip:
    """A sample whose first answer is not that of float32. Classes by index."""

    name: str
    image: Location  # npz
    truth: int
    float32: int
    answer: int


@dataclass(frozen=True)
class Comparison:
    """Int8 against float32, image by image."""

    top1: Accuracy  # of float32
    top5: Accuracy
    agreement: Accuracy  # same first answer, right or wrong
    right_to_wrong: int
    wrong_to_right: int
    flips: tuple[Flip, ...]
    divergence: Divergence

    @property
    def drop_interval(self) -> tuple[float, float]:
        """95% interval of the top-1 accuracy lost, in % points."""
        return drop_interval(self.right_to_wrong, self.wrong_to_right, self.top1.count)

    @property
    def p_value(self) -> float:
        """Of the exact McNemar test that no model is the better one."""
        return mcnemar_p(self.right_to_wrong, self.wrong_to_right)


@dataclass(frozen=True)
class Evaluation:
    """The outcome of `eval`."""

    facts: Mapping[str, Any]
    top1: Accuracy
    top5: Accuracy
    reference: Comparison | None
    notes: tuple[str, ...]
    doubts: tuple[str, ...]  # reasons not to trust the answers, with their likely cause and what to do
    package: Package | None  # that made the results, if it is still there
    classes: tuple[ClassInfo, ...]

    @property
    def precision(self) -> str:
        """What the answers were computed in: int8, fp16, fp32. Results that do not say are taken for int8."""
        return str(self.facts.get("precision", "int8"))


def load_ranks(samples: Sequence[Sample], class_count: int) -> Ranks:
    """Return the best classes of every result.

    Raises:
        DataError: a result is damaged, holds NaN or Inf, or has another number of classes.
    """
    return np.concatenate([_best(scores, min(_TOP, class_count)) for scores in _score_blocks(samples, class_count)])


def load_paired(
    samples: Sequence[Sample], reference: Sequence[Sample], class_count: int, scores: Scores | None = None
) -> tuple[Ranks, Ranks, Divergence]:
    """Return the best classes of both, and how far their scores are apart; raises as `load_ranks`."""
    divergence = Divergence(scores)
    ranks: tuple[list[Ranks], list[Ranks]] = ([], [])
    blocks = zip(_score_blocks(samples, class_count), _score_blocks(reference, class_count), strict=True)
    for answers, reference_answers in blocks:
        divergence.add(reference_answers, answers)
        for found, block in zip(ranks, (answers, reference_answers), strict=True):
            found.append(_best(block, min(_TOP, class_count)))
    return np.concatenate(ranks[0]), np.concatenate(ranks[1]), divergence


def _score_blocks(samples: Sequence[Sample], class_count: int) -> Iterator[npt.NDArray[np.float32]]:
    for start in range(0, len(samples), _RESULTS_AT_ONCE):
        part = samples[start : start + _RESULTS_AT_ONCE]
        scores = np.empty((len(part), class_count), np.float32)
        for row, sample in zip(scores, part, strict=True):
            found = read_result_npz(sample.result)[0]
            if found.size != class_count:
                raise DataError(f"{sample.result}: {found.size} classes, expected {class_count}; check --label")
            row[:] = found
        finite = np.isfinite(scores).all(axis=1)
        if not finite.all():
            raise DataError(f"{part[int(np.argmin(finite))].result}: holds NaN or Inf; run bench again")
        yield scores


def _best(scores: npt.NDArray[np.float32], count: int) -> Ranks:
    """Return the `count` best classes of each row, best first; of equal scores the lower class. Overwrites `scores`.

    Five passes for the maximum take a fifteenth of the time of sorting a thousand scores.
    """
    ranks = np.empty((len(scores), count), np.intp)
    rows = np.arange(len(scores))
    for place in range(count):
        ranks[:, place] = scores.argmax(axis=1)
        scores[rows, ranks[:, place]] = -np.inf
    return ranks


def compare(
    ranks: Ranks, reference: Ranks, divergence: Divergence, truth: npt.NDArray[np.intp], images: Sequence[Location]
) -> Comparison:
    """Return what changed between two sets of answers to the same samples."""
    int8, float32 = ranks[:, 0], reference[:, 0]
    was_right, is_right = float32 == truth, int8 == truth
    changed = np.flatnonzero(int8 != float32)
    count = len(truth)
    return Comparison(
        top1=Accuracy(int(was_right.sum()), count),
        top5=Accuracy(int((reference == truth[:, None]).any(axis=1).sum()), count),
        agreement=Accuracy(count - len(changed), count),
        right_to_wrong=int((was_right & ~is_right).sum()),
        wrong_to_right=int((~was_right & is_right).sum()),
        flips=tuple(
            Flip(sample_key(images[at]), images[at], int(truth[at]), int(float32[at]), int(int8[at]))
            for at in map(int, changed)
        ),
        divergence=divergence,
    )


@dataclass(frozen=True, kw_only=True)
class Request:
    """The flags of `eval`."""

    result_path: Path
    datalist: Path | None = None
    label: Path | None = None  # class names, a line a class (the package's); or lines `name index`, as `val_label`
    val_label: Path | None = None
    reference: bool | None = None  # None: up to `_REFERENCE_UNASKED` images


def evaluate(request: Request) -> Evaluation:
    """Score a results folder.

    Raises:
        PipelineError: results, datalist, labels or package do not fit each other.
    """
    datalist = read_datalist(request.datalist) if request.datalist else None
    run = results.read_run(request.result_path, datalist)
    package = _package_of(run.facts)
    labels = _lines_of(request.label)
    val_label = request.val_label
    if _are_ground_truth(labels, run.samples):
        classes = package.classes() if package else usual_classes(read_result_npz(run.samples[0].result).shape[1])
        val_label = val_label or request.label
    else:
        classes = _classes(request.label, labels, package)
    truth_by_key = ground_truth([s.image for s in run.samples], classes, val_label, _known(package))
    keys = [sample_key(sample.image) for sample in run.samples]
    truth = np.array([truth_by_key[key] for key in keys], np.intp)
    notes: list[str] = []
    reference = None
    if package is not None and request.reference is not False:
        reference = _reference(package, run, request.reference, notes)
    elif request.reference:
        prefix = run.facts.get("package")
        found = f"{prefix} is not here any more" if prefix else "the results do not say which package they are of"
        raise DataError(f"--reference: {found}; make them with bench")
    comparison = doubt = None
    if reference is None:
        ranks = load_ranks(run.samples, len(classes))
    else:
        ranks, reference_ranks, divergence = load_paired(
            run.samples, reference, len(classes), None if package is None else package.scores
        )
        comparison = compare(ranks, reference_ranks, divergence, truth, [s.image for s in run.samples])
        doubt = find_guessing(reference_ranks[:, 0], truth, [known.id for known in classes], "images")
    notes += [doubt] if doubt else []
    return Evaluation(
        facts={"sample": package is not None and package.uses_sample, **run.facts},
        top1=Accuracy(int((ranks[:, 0] == truth).sum()), len(truth)),
        top5=Accuracy(int((ranks == truth[:, None]).any(axis=1).sum()), len(truth)),
        reference=comparison,
        notes=tuple(notes),
        doubts=tuple(_doubts(package, run.facts, comparison)),
        package=package,
        classes=classes,
    )


def _doubts(package: Package | None, facts: Mapping[str, Any], comparison: Comparison | None) -> Iterator[str]:
    """Yield what the package's proof says against these answers, or they against it."""
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


def _package_of(facts: Mapping[str, Any]) -> Package | None:
    """Return the package that made the results, if it is still there and still the same."""
    if "package" not in facts:
        return None
    prefix = Path(facts["package"])
    if not prefix.parent.is_dir():
        return None
    package = open_package(prefix)
    if package.digest != facts["model_sha256"]:
        raise DataError(f"{prefix}: was built again since these results were made; run bench again")
    return package


def _lines_of(label: Path | None) -> list[str]:
    return [] if label is None else [line for line in read_lines(find_file(label, _LABELS)) if line.strip()]


def _are_ground_truth(lines: Sequence[str], samples: Sequence[Sample]) -> bool:
    """Tell lines `name index` of these images, which the documents' own script takes as `--label`, from class names."""
    stems = {sample.image.stem for sample in samples}
    fields = [line.rsplit(None, 1) for line in lines]
    return any(len(part) == 2 and part[1].isdigit() and image_stem(part[0]) in stems for part in fields)


def _classes(label: Path | None, names: Sequence[str], package: Package | None) -> tuple[ClassInfo, ...]:
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


def _known(package: Package | None) -> dict[str, int]:
    """Return the labels of the build's own evaluation images."""
    path = package.workspace_file("val_label") if package else None
    return read_label_list(path) if path else {}


def _reference(package: Package, run: results.Run, wanted: bool | None, notes: list[str]) -> tuple[Sample, ...] | None:
    """Return the float32 model's results for the samples of a run, computing those that are not there yet.

    They are kept in the build's workspace: another int8 model of the same network is compared at no further cost.
    """
    model = package.workspace_file("float32_model")
    if model is None:
        if wanted:
            raise DataError(f"--reference: the float32 model of {package.prefix} is not here; build it on this machine")
        notes.append("float32 not compared: the build's float32 model is not on this machine")
        return None
    spec = spec_from_vdsp_dict(run.facts["preprocess"], str(run.facts["package"]))
    images = [sample.image for sample in run.samples]
    gone = [image for image in images if not image.is_file()]
    if gone:
        if wanted:
            raise DataError(f"--reference: {len(gone)} of {len(images)} images are gone (first: {gone[0]})")
        notes.append(f"float32 not compared: {len(gone)} of {len(images)} images are gone (first: {gone[0]})")
        return None
    plan = Plan(model, choose(Runtime.AUTO), spec, batch=_REFERENCE_BATCH, instances=available_cores())
    facts = {
        "float32_model_sha256": file_digest(model),
        "runtime": plan.runtime.value,
        "preprocess": run.facts["preprocess"],
    }
    folder = model.parents[2] / "reference" / fingerprint(facts, list(map(str, images)))
    if not results.is_finished(folder, facts, images):
        if wanted is None and len(images) > _REFERENCE_UNASKED:
            notes.append(f"float32 not compared: {len(images)} images take a while; add --reference")
            return None
        results.write_results(plan, facts, images, folder, "float32 reference")
    return results.read_run(folder, images).samples


def as_dict(evaluation: Evaluation) -> dict[str, Any]:
    """Return the outcome as plain data, for `--json`."""
    reference = evaluation.reference
    outcome: dict[str, Any] = {
        "run": dict(evaluation.facts),
        evaluation.precision: {"top1": evaluation.top1.as_dict(), "top5": evaluation.top5.as_dict()},
        "float32": None,
        "notes": [*evaluation.notes, *evaluation.doubts],
    }
    if reference is not None:
        outcome["float32"] = {"top1": reference.top1.as_dict(), "top5": reference.top5.as_dict()}
        outcome["comparison"] = {
            "top1_drop": round(reference.top1.percent - evaluation.top1.percent, 3),
            "top5_drop": round(reference.top5.percent - evaluation.top5.percent, 3),
            "agreement": reference.agreement.as_dict(),
            "right_to_wrong": reference.right_to_wrong,
            "wrong_to_right": reference.wrong_to_right,
            "flips": [flip.name for flip in reference.flips],
            "top1_drop_interval_95": [round(bound, 3) for bound in reference.drop_interval],
            "mcnemar_p": reference.p_value,
            "scores": None if reference.divergence.scores is None else reference.divergence.scores.value,
            "kl_divergence": reference.divergence.kl,
            # Equal scores have no noise: JSON knows no infinity.
            "logit_sqnr_db": reference.divergence.sqnr_db if reference.divergence.noise else None,
        }
    return outcome


def describe(evaluation: Evaluation) -> list[str]:
    """Return the lines that people read."""
    reference = evaluation.reference
    runtime = evaluation.facts.get("runtime", "another program")
    lines = [f"{evaluation.top1.count} images, answers of {runtime}, 95% intervals in brackets"]
    if reference is not None:
        lines += [f"float32  top-1 {reference.top1}", f"         top-5 {reference.top5}"]
    lines += [f"{evaluation.precision:8} top-1 {evaluation.top1}", f"         top-5 {evaluation.top5}"]
    if reference is not None:
        drop1 = reference.top1.percent - evaluation.top1.percent
        drop5 = reference.top5.percent - evaluation.top5.percent
        low, high = reference.drop_interval
        lines += [
            f"drop     top-1 {drop1:+.2f} points [{low:+.2f}, {high:+.2f}], top-5 {drop5:+.2f} points",
            f"agreement      {reference.agreement}",
            f"flips    {reference.right_to_wrong} right to wrong, {reference.wrong_to_right} wrong to right, "
            f"{len(reference.flips)} answers changed in all; exact McNemar p = {reference.p_value:.2g}",
            f"scores   KL divergence {reference.divergence.kl:.5f} nats an image, logit SQNR "
            f"{reference.divergence.sqnr_db:.1f} dB",
        ]
        if reference.divergence.scores is Scores.SIGMOID:
            lines.append(
                "         of sigmoids: the sum of the divergences of the labels, and the SQNR of their own logits"
            )
    return [*lines, *evaluation.notes, *(f"note: {doubt}" for doubt in evaluation.doubts)]
