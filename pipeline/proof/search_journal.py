"""The trials of a search for a goal: which activations were changed, what each change bought, what is left to try."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.artefacts import write_json
from pipeline.proof.judge import CandidateFigures

_SPLIT_GAIN = 0.75  # of the noise of an activation's quantizer: its steps become half as wide


@dataclass(frozen=True)
class Change:
    """What a trial does to one activation: two int8 channels for one (see `quant.splitting`), or float32."""

    activation: str
    split: bool = False

    def __str__(self) -> str:
        return f"{self.activation} {'split' if self.split else 'in float'}"


@dataclass(frozen=True)
class Step:
    """One trial: the kept changes so far and one more."""

    activation: str  # "" for the plain int8 model
    kept: bool
    figures: CandidateFigures
    seconds: float
    split: bool = False

    @property
    def change(self) -> Change:
        return Change(self.activation, self.split)


class Journal:
    """The trials so far, on disk after each of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.costs: dict[str, float] | None = None  # of candidates: the divergence that each causes
        self.channels: dict[str, list[int]] = {}  # of the candidates that can be split: what gets a second part
        self.steps: list[Step] = []
        self.lost: dict[str, str] = {}  # changes after which no runtime opened the model, and why
        self.seconds = 0.0
        if path.exists():
            held = json.loads(path.read_text(encoding="utf-8"))
            self.costs, self.channels = held["costs"], held["channels"]
            self.lost, self.seconds = held["lost"], held["seconds"]
            self.steps = [Step(**{**step, "figures": CandidateFigures(**step["figures"])}) for step in held["steps"]]

    def set_candidates(self, costs: Mapping[str, float], channels: Mapping[str, Sequence[int]], seconds: float) -> None:
        """Hold what may be tried: divergence by activation, nats an image, and channels of those that can be split."""
        self.costs = dict(costs)
        self.channels = {name: list(each) for name, each in channels.items()}
        self.seconds += seconds
        self._save()

    def add(self, step: Step) -> None:
        self.steps.append(step)
        self.seconds += step.seconds
        self._save()

    def lose(self, change: Change, why: str, seconds: float) -> None:
        self.lost[str(change)] = why
        self.seconds += seconds
        self._save()

    def waiting(self) -> list[tuple[Change, float]]:
        """Return the changes that were not tried and the divergence each would save, the largest first.

        An activation that can be split is split first, and left in float32 for what remains of its noise.
        """
        tried = {step.change for step in self.steps}
        kept = {step.change for step in self.steps if step.kept}
        found = []
        for name, cost in (self.costs or {}).items():
            whole, part = Change(name), Change(name, split=True)
            untried = part not in tried and str(part) not in self.lost
            if name in self.channels and untried:
                found.append((part, _SPLIT_GAIN * cost))
            elif whole not in tried and str(whole) not in self.lost:
                found.append((whole, (1 - _SPLIT_GAIN) * cost if part in kept else cost))
        return sorted(found, key=lambda each: -each[1])

    def trials(self) -> int:
        """Return how many changes there are to try, the tried ones among them."""
        return len(self.costs or {}) + len(self.channels)

    def kept(self) -> list[Change]:
        """Return the changes of the best model so far, in the order in which they were found."""
        return [step.change for step in self.steps if step.kept and step.activation]

    def in_float(self) -> list[str]:
        """Return the activations that stay in float32."""
        return [change.activation for change in self.kept() if not change.split]

    def split(self) -> dict[str, list[int]]:
        """Return the activations that are split, and which channels of each."""
        whole = self.in_float()
        names = [change.activation for change in self.kept() if change.split]
        return {name: self.channels[name] for name in names if name not in whole}

    def best(self) -> Step:
        return [step for step in self.steps if step.kept][-1]

    def _save(self) -> None:
        held: dict[str, Any] = {"costs": self.costs, "channels": self.channels, "lost": self.lost}
        write_json(self._path, {**held, "seconds": self.seconds, "steps": [asdict(step) for step in self.steps]})
