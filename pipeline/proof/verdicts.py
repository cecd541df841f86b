"""Comparison of a model's outputs with a reference: figures, and a verdict with its likely cause.

The thresholds were measured on 64 calibration images of resnet18 and on networks of a few layers: good int8 models lie
at 24 to 45 dB in exact arithmetic, and each runtime within 1.5 dB of that; saturated sums on an AVX2 CPU leave 11.7 dB
(KL .22, 52 of 64 answers), ranges clipped at 99.9% 16.0 dB (KL .06, 55 of 64) and at 99% 7.3 dB (KL .50, 43 of 64).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.onnx_models.scores import Scores
from pipeline.quant.divergence import Divergence

Float32 = npt.NDArray[np.float32]

_USELESS_DB = 8.0
_BAD_DB = 15.0  # suspicious in any case
_LOW_DB = 20.0  # suspicious where it changes answers too
_KL = 0.02  # nats per image: good models of 1000 classes stay below .01
_SAME = 0.95  # of the answers, together with a low SQNR
_LEAST_SAME = 0.8  # of the answers, whatever the SQNR: a few logits may make up all of its signal
_ALIKE = 1e-4  # of the largest output: by how much outputs differ that float32 rounding alone makes different
_FEW = 8  # images: the answers of fewer are too few to count
# By how much a runtime's SQNR may lie below that of exact arithmetic. Kernels round sums and pools differently, which
# in networks of a few layers costs some of the 40 dB; what counts is how many are left.
_KERNEL_DB, _KERNEL_SOUND_DB, _KERNEL_BROKEN_DB = 3.0, 25.0, 10.0
_EVALUATION_DB = 6.0  # by which an evaluation's SQNR may lie below that of the calibration images
_PLENTY_DB = 45.0  # a loss above this level, as in float models, does not matter


class Verdict(Enum):
    GOOD = "good"
    SUSPICIOUS = "suspicious"
    REFUSED = "refused"  # of no use
    LOST = "lost"  # the runtime died, hung, or refused the model


@dataclass(frozen=True)
class Figures:
    """A comparison of outputs with those of a reference on the same images."""

    images: int
    same_answers: int
    finite: bool
    kl: float | None  # nats per image; None where an output is not finite
    sqnr_db: float | None  # of the logits; None where there is no noise, or an output is not finite
    largest_difference: float | None
    largest_output: float  # of the reference, by magnitude

    @property
    def decibels(self) -> float:
        """The SQNR; infinity without noise, and minus infinity for outputs that are not finite."""
        if not self.finite:
            return float("-inf")
        return float("inf") if self.sqnr_db is None else self.sqnr_db

    def __str__(self) -> str:
        if not self.finite:
            return "outputs that are not finite"
        if self.sqnr_db is None:
            return "equal outputs"
        return f"{self.sqnr_db:.1f} dB, KL {self.kl:.4f}, {self.same_answers}/{self.images} answers"


@dataclass(frozen=True)
class Finding:
    """A verdict, and unless it is good, the likely cause and what to do."""

    verdict: Verdict
    cause: str = ""

    def as_dict(self) -> dict[str, str]:
        return {"verdict": self.verdict.value, "cause": self.cause}


def compare(reference: Float32, outputs: Float32, scores: Scores | None) -> Figures:
    """Return how far outputs are from a reference, both float32 [images, classes]; `scores` says what they are."""
    same = int((outputs.argmax(axis=1) == reference.argmax(axis=1)).sum())
    largest = float(np.abs(reference).max())
    if not np.isfinite(outputs).all():
        return Figures(len(reference), same, False, None, None, None, largest)
    divergence = Divergence(scores)
    divergence.add(reference, outputs)
    difference = float(np.abs(outputs - reference).max())
    sqnr_db = divergence.sqnr_db if divergence.noise > 0 else None
    return Figures(len(reference), same, True, divergence.kl, sqnr_db, difference, largest)


def judge_reference(reference: Float32) -> Finding:
    """Return the verdict on float32's own outputs, [images, classes]: of equal ones no comparison says anything."""
    spread = float(np.abs(reference - reference.mean(axis=0)).max())
    if len(reference) > 1 and spread <= _ALIKE * float(np.abs(reference).max()):
        cause = (
            "float32 itself gives every image the same scores, so that this says nothing: its weights are not trained, "
            "or its images are not prepared as in training; see `process_ops`"
        )
        return Finding(Verdict.SUSPICIOUS, cause)
    return Finding(Verdict.GOOD)


def judge_model(figures: Figures, cause: str) -> Finding:
    """Return the verdict on a model in exact arithmetic, compared with float32.

    Args:
        cause: the most likely cause of noise, and what to do.
    """
    if figures.decibels < _USELESS_DB:
        return Finding(Verdict.REFUSED, cause)
    same = figures.same_answers / figures.images if figures.images >= _FEW else 1.0
    changes = same < _SAME or (figures.kl or 0.0) > _KL
    if figures.decibels < _BAD_DB or (figures.decibels < _LOW_DB and changes) or same < _LEAST_SAME:
        return Finding(Verdict.SUSPICIOUS, cause)
    return Finding(Verdict.GOOD)


def judge_runtime(figures: Figures, exact: Figures, cause: str) -> Finding:
    """Return the verdict on a runtime, as it runs on a CPU: whether it computes what the file says.

    Args:
        figures: the runtime compared with float32.
        exact: the file in exact arithmetic compared with float32.
        cause: the most likely cause of a difference, and what to do.
    """
    lost = min(exact.decibels, _PLENTY_DB) - figures.decibels
    if lost > _KERNEL_BROKEN_DB and figures.decibels < _LOW_DB:
        return Finding(Verdict.REFUSED, cause)
    if lost > _KERNEL_BROKEN_DB or (lost > _KERNEL_DB and figures.decibels < _KERNEL_SOUND_DB):
        return Finding(Verdict.SUSPICIOUS, cause)
    return Finding(Verdict.GOOD)


def judge_evaluation(sqnr_db: float, exact_db: float | None) -> str | None:
    """Return a warning where an evaluation's SQNR is far below that of exact arithmetic in the build, else None.

    Images of another kind than the calibration's cost some dB; kernels that saturate cost 17 dB.
    """
    if exact_db is None or sqnr_db >= _LOW_DB or exact_db - sqnr_db <= _EVALUATION_DB:
        return None
    return (
        f"suspicious: logit SQNR of {sqnr_db:.1f} dB, where the build had {exact_db:.1f} dB in exact arithmetic on "
        "calibration images: the runtime's kernels cut sums off where the answers were computed, or the images are of "
        "another kind than those; `analyze` tells the two apart"
    )


def record(figures: Figures, finding: Finding) -> dict[str, Any]:
    """Return both as plain data, for reports."""
    return {**plain(figures), **finding.as_dict()}


def plain(figures: Figures) -> dict[str, Any]:
    """Return figures as plain data, rounded: the last bits of a sum depend on how threads divided it."""
    digits = {"kl": "{:.3e}", "sqnr_db": "{:.2f}", "largest_difference": "{:.3e}", "largest_output": "{:.3e}"}
    return {
        name: float(digits[name].format(value)) if name in digits and value is not None else value
        for name, value in asdict(figures).items()
    }


def describe(proof: Mapping[str, Any]) -> list[str]:
    """Return a report's `proof` as lines for people: the SQNRs, then what is not good."""
    exact, runtimes = proof["exact"], proof["runtimes"]
    compared = [("exact arithmetic", exact)] if exact.get("images") else []  # none where it was lost
    parts = [f"{_decibels(figures)} in {name}" for name, figures in [*compared, *_ran(runtimes)]]
    lines = [f"logit SQNR against float32: {', '.join(parts)}"] if parts else []
    return lines + [f"{verdict}: {text}" for verdict, text in warnings(proof)]


def warnings(proof: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is not good in a `proof`: the verdict, and a sentence with cause and advice."""
    found = []
    given = proof.get("given") or {}
    if given.get("verdict", "good") != "good":
        found.append(
            (
                given["verdict"],
                f"the float32 model beside the file as it was given: {given.get('cause') or 'no cause was found'}",
            )
        )
    exact = proof["exact"]
    if exact["verdict"] == Verdict.LOST.value:
        found.append(("not checked", f"exact arithmetic {exact['cause']}"))
    elif exact["verdict"] != "good":
        found.append((exact["verdict"], f"{_figures(exact)} beside float32 in exact arithmetic: {exact['cause']}"))
    for name, each in proof["runtimes"].items():
        if each["verdict"] == Verdict.LOST.value:
            found.append((f"{name} left out", f"it {each['cause']}"))
        elif each["verdict"] != "good":
            found.append(
                (f"{each['verdict']} in {name}", f"{_figures(each['float32'])} beside float32: {each['cause']}")
            )
    return found


def _ran(runtimes: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, each["float32"]) for name, each in runtimes.items() if "float32" in each]


def _decibels(figures: Mapping[str, Any]) -> str:
    if figures["sqnr_db"] is None:
        return "no noise" if figures["finite"] else "no finite outputs"
    return f"{figures['sqnr_db']:.1f} dB"


def _figures(figures: Mapping[str, Any]) -> str:
    return str(Figures(**{name: figures[name] for name in Figures.__dataclass_fields__}))
