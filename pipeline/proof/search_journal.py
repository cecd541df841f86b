"""The trials of a search for a goal: which activations were changed, what each change bought, what is left to try."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pipeline.artefacts import write_json
from pipeline.proof.judge import CandidateFigures

_SPLIT_GAIN = 0.75  # of the noise of an activation's quantizer: its steps become half as wide


class How(Enum):
    """What is done to an activation."""

    IN_FLOAT = "in float"  # float32, and with it the layers that read it
    SPLIT = "split"  # two int8 channels for one, see `quant.splitting`
    SUMS = "and later sums in float"  # of the residual stream that begins with it, see `quant.float_sums`


@dataclass(frozen=True)
class Change:
    """What a trial does to one activation."""

    activation: str
    how: How = How.IN_FLOAT

    def __str__(self) -> str:
        return f"{self.activation} {self.how.value}"


@dataclass(frozen=True)
class Step:
    """One trial: the kept changes so far and one more."""

    activation: str  # "" for the plain int8 model
    kept: bool
    figures: CandidateFigures
    seconds: float
    how: How = How.IN_FLOAT

    @property
    def change(self) -> Change:
        return Change(self.activation, self.how)

    def as_document(self) -> dict[str, Any]:
        """Return what is written of it, for `from_document`."""
        return {**asdict(self), "how": self.how.value}

    @classmethod
    def from_document(cls, held: Mapping[str, Any]) -> Step:
        return cls(**{**held, "figures": CandidateFigures(**held["figures"]), "how": How(held["how"])})


@dataclass(frozen=True)
class Candidates:
    """What may be tried."""

    costs: Mapping[str, float]  # by activation, the divergence that it causes, nats an image
    channels: Mapping[str, Sequence[int]]  # by activation that can be split, those that get a second part
    streams: Mapping[str, Sequence[str]]  # by first sum of a residual stream, the names of its additions
    stream_gains: Mapping[str, float]  # the divergence that its sums in float32 save


class Journal:
    """The trials so far, on disk after each of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.candidates: Candidates | None = None
        self.steps: list[Step] = []
        self.lost: dict[str, str] = {}  # changes after which no runtime opened the model, and why
        self.seconds = 0.0
        if path.exists():
            held = json.loads(path.read_text(encoding="utf-8"))
            self.candidates = Candidates(**held["candidates"]) if held["candidates"] is not None else None
            self.lost, self.seconds = held["lost"], held["seconds"]
            self.steps = [Step.from_document(step) for step in held["steps"]]

    def set_candidates(self, candidates: Candidates, seconds: float) -> None:
        """Hold what may be tried, and how long it took to find that."""
        self.candidates = candidates
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
        """Return the changes that were not tried and about what divergence each saves, in the order to try them in.

        Those after which every convolution is still int8 come first: they cost the least speed for what they save.

        An activation that can be split is split first, and left in float32 for what remains of its noise.
        """
        if self.candidates is None:
            return []
        done = {str(step.change) for step in self.steps} | self.lost.keys()
        kept = {step.change for step in self.steps if step.kept}
        found = [(Change(name, How.SUMS), gain) for name, gain in self.candidates.stream_gains.items()]
        for name, cost in self.candidates.costs.items():
            part = Change(name, How.SPLIT)
            if name in self.candidates.channels and str(part) not in done:
                found.append((part, _SPLIT_GAIN * cost))
            else:
                found.append((Change(name), (1 - _SPLIT_GAIN) * cost if part in kept else cost))
        left = [each for each in found if str(each[0]) not in done]
        return sorted(left, key=lambda each: (each[0].how is How.IN_FLOAT, -each[1]))

    def trials(self) -> int:
        """Return how many changes there are to try, the tried ones among them."""
        found = self.candidates
        return 0 if found is None else len(found.costs) + len(found.channels) + len(found.streams)

    def kept(self) -> list[Change]:
        """Return the changes of the best model so far, in the order in which they were found."""
        return [step.change for step in self.steps if step.kept and step.activation]

    def in_float(self) -> list[str]:
        """Return the activations that stay in float32."""
        return self._kept(How.IN_FLOAT)

    def split(self) -> dict[str, list[int]]:
        """Return the activations that are split, and which channels of each."""
        whole = self.in_float()
        names = [name for name in self._kept(How.SPLIT) if name not in whole]
        return {name: self.channels_of(name) for name in names}

    def sums_in_float(self) -> list[str]:
        """Return the names of the additions whose sums stay in float32."""
        return [addition for name in self._kept(How.SUMS) for addition in self.additions_of(name)]

    def channels_of(self, activation: str) -> list[int]:
        """Return the channels that get a second part where a candidate is split."""
        assert self.candidates is not None, "there are candidates by now"
        return list(self.candidates.channels[activation])

    def additions_of(self, stream: str) -> list[str]:
        """Return the names of the additions of a candidate."""
        assert self.candidates is not None, "there are candidates by now"
        return list(self.candidates.streams[stream])

    def _kept(self, how: How) -> list[str]:
        return [change.activation for change in self.kept() if change.how is how]

    def best(self) -> Step:
        return [step for step in self.steps if step.kept][-1]

    def _save(self) -> None:
        held: dict[str, Any] = {
            "candidates": None if self.candidates is None else asdict(self.candidates),
            "lost": self.lost,
            "seconds": self.seconds,
            "steps": [step.as_document() for step in self.steps],
        }
        write_json(self._path, held)
