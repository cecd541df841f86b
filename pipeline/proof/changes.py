"""What a search for a goal can change of an int8 model, and what a trial of it came to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from pipeline.proof.judge import CandidateFigures
from pipeline.quant.splitting import Split


class How(Enum):
    """What is done to an activation."""

    IN_FLOAT = "in float"  # float32, and with it the layers that read it
    SPLIT = "split"  # two int8 channels for one, see `quant.splitting`
    JOIN = "in float before it is rounded"  # a sum of two convolutions, see `quant.float_sums`
    SUMS = "and later sums in float"  # of the residual stream that begins with it
    HALVED = "float parts in bfloat16"  # all that are left in float: less accurate, and faster


@dataclass(frozen=True)
class Change:
    """What a trial does to one activation."""

    activation: str
    how: How = How.IN_FLOAT
    channels: int = 0  # of a split, that get a second part

    def __str__(self) -> str:
        return f"{self.activation} {self.how.value}{f', {self.channels} channels' if self.channels else ''}"


BFLOAT16 = Change("all", How.HALVED)  # what a search gains time with when all else is done


@dataclass(frozen=True)
class Step:
    """One trial: the kept changes so far and one more, perhaps without some of them."""

    activation: str  # "" for the plain int8 model
    kept: bool
    figures: CandidateFigures
    seconds: float
    how: How = How.IN_FLOAT
    channels: int = 0
    without: tuple[Change, ...] = ()  # kept changes that it gives up

    @property
    def change(self) -> Change:
        return Change(self.activation, self.how, self.channels)

    def as_document(self) -> dict[str, Any]:
        """Return what is written of it, for `from_document`."""
        without = [{**asdict(each), "how": each.how.value} for each in self.without]
        return {**asdict(self), "how": self.how.value, "without": without}

    @classmethod
    def from_document(cls, held: Mapping[str, Any]) -> Step:
        without = tuple(Change(**{**each, "how": How(each["how"])}) for each in held["without"])
        figures = CandidateFigures(**held["figures"])
        return cls(**{**held, "figures": figures, "how": How(held["how"]), "without": without})


@dataclass(frozen=True)
class Candidates:
    """What may be tried."""

    costs: Mapping[str, float]  # by activation, the divergence that would go with it in float32, nats per image
    rounding: Mapping[str, float]  # by activation, the part of it that its own quantizer causes
    splits: Mapping[str, Sequence[Split]]  # by activation that can be split, from few channels to many
    streams: Mapping[str, Sequence[str]]  # by first sum of a residual stream, the names of its additions
    joins: Mapping[str, Sequence[str]]  # the same of the streams whose first addition may be changed alone
    gains: Mapping[str, float]  # by a change of a stream or join, the divergence that it saves
    slowdowns: Mapping[str, float]  # by such a change, or split, about what share of the time it takes
    fewer: Mapping[str, Sequence[Split]]  # further ways to split, which save less a channel, where time is short
    whole: float  # the divergence that all quantizers cause together

    @classmethod
    def from_document(cls, held: Mapping[str, Any]) -> Candidates:
        splits, fewer = (
            {name: [Split(**each) for each in ways] for name, ways in held[key].items()} for key in ("splits", "fewer")
        )
        return cls(**{**held, "splits": splits, "fewer": fewer})

    def ways(self, name: str) -> list[Split]:
        """Return all ways to split an activation."""
        return [*self.splits.get(name, ()), *self.fewer.get(name, ())]


def apply(kept: Sequence[Change], change: Change, without: Collection[Change] = ()) -> list[Change]:
    """Return the changes of a model after one more, which takes the place of others of its kind and activation."""
    replaced = {How.SUMS: (How.SUMS, How.JOIN), How.IN_FLOAT: (How.IN_FLOAT, How.SPLIT)}.get(change.how, (change.how,))
    left = [each for each in kept if each not in without]
    return [*(each for each in left if each.activation != change.activation or each.how not in replaced), change]
