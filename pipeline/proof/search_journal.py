"""The trials of a search for a goal: which activations were changed, what each change bought, what is left to try."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.artefacts import write_json
from pipeline.proof.changes import BFLOAT16, Candidates, Change, How, Step, apply
from pipeline.quant.splitting import Split

# What bfloat16 should save of the divergence and take of the time: resnet18, with sums of most streams in it.
_HALVED = (-0.02, -0.04)


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
            self.candidates = Candidates.from_document(held["candidates"]) if held["candidates"] is not None else None
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

        Those after which every convolution is still int8 come first, and of these what saves most for its time. An
        activation that can be split is split first, in few channels and then in more, unless few were too slow, and
        left in float32 for what remains of its noise.
        """
        if self.candidates is None:
            return []
        done = {str(step.change) for step in self.steps} | self.lost.keys()
        int8, rounding = self._sums(), self.candidates.rounding
        in_float: list[tuple[Change, float]] = []
        for name, cost in self.candidates.costs.items():
            wider, left = self._next_split(name)
            if wider is None:
                in_float.append((Change(name), cost - (1 - left) * rounding[name]))
            else:
                int8.append((Change(name, How.SPLIT, len(wider.channels)), (left - wider.left) * rounding[name]))
        int8 = [each for each in int8 if str(each[0]) not in done]
        before, slowdowns = self._slowdowns_kept(), self.candidates.slowdowns

        def bought(each: tuple[Change, float]) -> float:
            change, gain = each
            return gain / max(1e-9, slowdowns[str(change)] - before.get(change.activation, 0.0))

        left_in_float = [each for each in in_float if str(each[0]) not in done]
        return [*sorted(int8, key=lambda each: -bought(each)), *sorted(left_in_float, key=lambda each: -each[1])]

    def _sums(self) -> list[tuple[Change, float]]:
        """Return the changes of streams and joins, and what each saves beside what was kept of its stream."""
        assert self.candidates is not None, "there are candidates by now"
        kept, gains = set(self.kept()), self.candidates.gains
        found = []
        for name in self.candidates.streams:
            join, whole = Change(name, How.JOIN), Change(name, How.SUMS)
            found.append((whole, gains[str(whole)] - (gains[str(join)] if join in kept else 0.0)))
            if name in self.candidates.joins and whole not in kept:
                found.append((join, gains[str(join)]))
        return found

    def _next_split(self, name: str) -> tuple[Split | None, float]:
        """Return the way to split an activation that is to be tried next, and the share of its noise that is left."""
        assert self.candidates is not None, "there are candidates by now"
        steps = {step.channels: step for step in self.steps if step.activation == name and step.how is How.SPLIT}
        left = 1.0
        for way in self.candidates.splits.get(name, ()):
            step = steps.get(len(way.channels))
            if step is not None:
                if not step.kept and step.figures.speed is not None:  # too slow, as all with more channels would be
                    return None, left
                left = way.left if step.kept else left
            elif str(Change(name, How.SPLIT, len(way.channels))) not in self.lost:
                return way, left
        return None, left

    def _slowdowns_kept(self) -> dict[str, float]:
        """Return what share of the time the splits and joins that were kept take, by activation."""
        assert self.candidates is not None, "there are candidates by now"
        kept = [change for change in self.kept() if change.how in (How.SPLIT, How.JOIN)]
        return {change.activation: self.candidates.slowdowns[str(change)] for change in kept}

    def trials(self) -> int:
        """Return how many changes there are to try, the tried ones among them."""
        found = self.candidates
        ways = 0 if found is None else sum(map(len, found.splits.values()))
        if found is None:
            return 0
        return len(found.costs) + ways + len(found.streams) + len(found.joins)

    def kept(self) -> list[Change]:
        """Return the changes of the best model so far, in the order in which they were found."""
        return self._kept_before(len(self.steps))

    def _kept_before(self, count: int) -> list[Change]:
        """Return the changes that were kept after so many trials."""
        found: list[Change] = []
        for step in self.steps[:count]:
            if step.kept and step.activation:
                found = [*(change for change in found if change not in step.without), step.change]
        return found

    def models(self) -> list[tuple[list[Change], Step]]:
        """Return the changes of the model of each trial, without those that another one of the same kind replaced."""
        found = []
        for at, step in enumerate(self.steps):
            changes = list[Change]()
            for each in [*self._kept_before(at), *([step.change] if step.activation else [])]:
                if each not in step.without:
                    changes = apply(changes, each)
            found.append((changes, step))
        return found

    def best_changes(self) -> list[Change]:
        """Return the changes of the best model so far, as of `models`."""
        return [changes for changes, step in self.models() if step.kept][-1]

    def priors(self) -> dict[Change, tuple[float, float]]:
        """Return what each change should save and take.

        In shares of the divergence and of the time of the plain int8 model, each beside no other of its activation.
        """
        held = self.candidates
        if held is None or held.whole <= 0:
            return {}
        found: dict[Change, tuple[float, float]] = {}
        for how, names in ((How.SUMS, held.streams), (How.JOIN, held.joins)):
            for change in (Change(name, how) for name in names):
                found[change] = held.gains[str(change)] / held.whole, held.slowdowns[str(change)]
        for name, cost in held.costs.items():
            found[Change(name)] = cost / held.whole, held.slowdowns[str(Change(name))]
            for way in held.ways(name):
                change = Change(name, How.SPLIT, len(way.channels))
                found[change] = (1 - way.left) * held.rounding[name] / held.whole, held.slowdowns[str(change)]
        if BFLOAT16 in self.kept():
            found[BFLOAT16] = _HALVED
        return found

    def can_be_halved(self) -> bool:
        """Tell whether bfloat16 may be tried: something is left in float32, and it was not tried or lost."""
        left = [change for change in self.kept() if change.how in (How.IN_FLOAT, How.SUMS, How.JOIN)]
        done = {str(step.change) for step in self.steps} | self.lost.keys()
        return bool(left) and str(BFLOAT16) not in done

    def take_back_bfloat16(self) -> None:
        """Go back to the best model in float32, unless one in bfloat16 became better with the time that this gained.

        By itself bfloat16 is never nearer to float32, though the few images that decide a divergence may say so.
        """
        kept = [step for step in self.steps if step.kept]
        at = next((at for at, step in enumerate(kept) if step.change == BFLOAT16), len(kept))
        if at == len(kept):
            return
        if kept[-1].change == BFLOAT16 or kept[-1].figures.distance >= kept[at - 1].figures.distance:
            given_up = kept[at:]
            self.steps = [replace(step, kept=step.kept and step not in given_up) for step in self.steps]
            self._save()

    def in_float(self) -> list[str]:
        """Return the activations that stay in float32."""
        return self._kept(How.IN_FLOAT)

    def split(self) -> dict[str, Split]:
        """Return the activations that are split, and how."""
        whole = self.in_float()
        changes = [change for change in self.kept() if change.how is How.SPLIT and change.activation not in whole]
        return self.splits_of(changes)

    def sums_in_float(self) -> list[str]:
        """Return the names of the additions whose sums stay in float32."""
        return self.additions_of(self.kept())

    def splits_of(self, changes: Iterable[Change]) -> dict[str, Split]:
        """Return how changes split activations, by activation; of several of one the last counts."""
        found: dict[str, Split] = {}
        for change in changes:
            if change.how is How.SPLIT:
                assert self.candidates is not None, "there are candidates by now"
                ways = self.candidates.ways(change.activation)
                found[change.activation] = next(way for way in ways if len(way.channels) == change.channels)
        return found

    def additions_of(self, changes: Iterable[Change]) -> list[str]:
        """Return the names of the additions that changes leave in float32."""
        found: dict[str, None] = {}
        for change in changes:
            if change.how in (How.SUMS, How.JOIN):
                assert self.candidates is not None, "there are candidates by now"
                of_how = self.candidates.streams if change.how is How.SUMS else self.candidates.joins
                found.update(dict.fromkeys(of_how[change.activation]))
        return list(found)

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
