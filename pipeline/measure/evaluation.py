"""The results of an evaluation, as lines for people and as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.data.labels import ClassInfo
from pipeline.measure.accuracy import Accuracy, change_in_points
from pipeline.measure.comparison import AnswerComparison
from pipeline.measure.result_scores import TOP
from pipeline.onnx_models.scores import Scores
from pipeline.packages.package import Package
from pipeline.terminal.counts import counted


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a results folder, and its comparison with float32."""

    facts: Mapping[str, Any]  # of the run: package, runtime, datalist, ...
    top1: Accuracy
    top5: Accuracy
    reference: AnswerComparison | None  # None: float32 was not compared; `notes` says why
    notes: tuple[str, ...]
    doubts: tuple[str, ...]  # reasons not to trust the answers, with their likely cause and what to do
    package: Package | None  # that made the results, if it is still there
    classes: tuple[ClassInfo, ...]

    @property
    def precision(self) -> str:
        """What the answers were computed in: int8, fp16, fp32. Results without this information count as int8."""
        return str(self.facts.get("precision", "int8"))

    @property
    def has_top5(self) -> bool:
        """Whether top-5 is informative: with five classes or fewer it is always 100%."""
        return len(self.classes) > TOP

    @property
    def top1_change(self) -> float | None:
        """Top-1 of the package less that of float32, in points: above 0 the package is better. None: not compared."""
        return None if self.reference is None else change_in_points(self.reference.top1, self.top1)

    @property
    def top5_change(self) -> float | None:
        """The same of top-5."""
        return None if self.reference is None else change_in_points(self.reference.top5, self.top5)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, as `eval --json` writes it."""
        outcome: dict[str, Any] = {
            "run": dict(self.facts),
            self.precision: {"top1": self.top1.as_dict(), "top5": self.top5.as_dict()},
            "float32": None,
            "notes": [*self.notes, *self.doubts],
        }
        if self.reference is not None:
            outcome["float32"] = {"top1": self.reference.top1.as_dict(), "top5": self.reference.top5.as_dict()}
            outcome["comparison"] = self._compared(self.reference)
        return outcome

    def _compared(self, reference: AnswerComparison) -> dict[str, Any]:
        change1 = change_in_points(reference.top1, self.top1)
        change5 = change_in_points(reference.top5, self.top5)
        low, high = reference.change_interval
        return {
            "top1_change": round(change1, 3),
            "top5_change": round(change5, 3),
            "top1_change_interval_95": [round(low, 3), round(high, 3)],
            # The same with the opposite sign, as earlier versions wrote them.
            "top1_drop": round(0.0 - change1, 3),
            "top5_drop": round(0.0 - change5, 3),
            "top1_drop_interval_95": [round(-high, 3), round(-low, 3)],
            "agreement": reference.agreement.as_dict(),
            "right_to_wrong": reference.right_to_wrong,
            "wrong_to_right": reference.wrong_to_right,
            "flips": [flip.name for flip in reference.flips],
            "mcnemar_p": reference.p_value,
            "scores": None if reference.divergence.scores is None else reference.divergence.scores.value,
            "kl_divergence": reference.divergence.kl,
            # Equal scores have no noise: JSON knows no infinity.
            "logit_sqnr_db": reference.divergence.sqnr_db if reference.divergence.noise else None,
        }

    def as_lines(self) -> list[str]:
        """Return what `eval` prints."""
        runtime = self.facts.get("runtime", "another program")
        lines = [f"{counted(self.top1.count, 'image')}, predicted by {runtime}, 95% intervals in brackets"]
        if self.reference is not None:
            lines += self._top_lines("float32", self.reference.top1, self.reference.top5)
        lines += self._top_lines(self.precision, self.top1, self.top5)
        if self.reference is not None:
            lines += self._comparison_lines(self.reference)
        return [*lines, *self.notes, *(f"note: {doubt}" for doubt in self.doubts)]

    def _top_lines(self, name: str, top1: Accuracy, top5: Accuracy) -> list[str]:
        return [f"{name:8} top-1 {top1}", *([f"         top-5 {top5}"] if self.has_top5 else [])]

    def _comparison_lines(self, reference: AnswerComparison) -> list[str]:
        low, high = reference.change_interval
        changes = [f"top-1 {self.top1_change:+.2f} points [{low:+.2f}, {high:+.2f}]"]
        changes += [f"top-5 {self.top5_change:+.2f} points"] if self.has_top5 else []
        lines = [
            f"change in {', in '.join(changes)}",
            f"agreement      {reference.agreement}",
            f"flips    {reference.right_to_wrong} right to wrong, {reference.wrong_to_right} wrong to right, "
            f"{counted(len(reference.flips), 'answer')} changed in all; exact McNemar p = {reference.p_value:.2g}",
            f"scores   KL divergence {reference.divergence.kl:.5f} nats per image, logit SQNR "
            f"{reference.divergence.sqnr_db:.1f} dB",
        ]
        if reference.divergence.scores is Scores.SIGMOID:
            lines.append(
                "         of sigmoids: the sum of the divergences of the labels, and the SQNR of their own logits"
            )
        return lines
