"""What fits into the time of a search for a goal, and what it tries last: changes in the place of kept ones.

A search that takes one change after the other ends where the next one does not fit into the time that is left, though
it may buy more than some that were kept. How much each change saves and takes is estimated from all trials together,
beginning with what gradients and counts of work tell: linear regression with a Gaussian prior. Powers of noise and
times of layers add up, so both are sums over the changes of a model.

Source of the estimate: Bishop, Pattern Recognition and Machine Learning (2006), section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from pipeline.proof.changes import BFLOAT16, Change, How, apply
from pipeline.proof.search_journal import Journal

_DROPPED = 2  # kept changes that one trial gives up, at most
# Standard deviations of what is told of a change in advance, as shares of it: common to all changes of a kind, since
# machines differ; common to all ways to change an activation; of each change.
_OF_KIND, _OF_ACTIVATION, _OF_CHANGE = 0.5, 0.5, 0.3
_DOUBT = 2.0  # the time of a change may be less than estimated by this factor
_ERROR = 0.01  # standard deviation of a measured distance, and of a measured time, as shares of the plain model's

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Exchange:
    """A trial: a change in the place of kept ones."""

    change: Change
    without: tuple[Change, ...]
    distance: float  # expected, as a share of that of the best model so far


def may_fit(journal: Journal, change: Change, least_speed: float) -> bool:
    """Tell whether the best model so far may be fast enough with one more change, even where that takes half as long.

    Args:
        least_speed: images a second over those of the plain int8 model.
    """
    priors = journal.priors()
    if change not in priors:
        return True
    _, takes = _estimate(journal, list(priors))
    others = [each for each in apply(journal.best_changes(), change) if each != change]
    return sum(takes[each] for each in others) + takes[change] / _DOUBT <= 1 / least_speed - 1


def find_exchange(journal: Journal, least_speed: float) -> Exchange | None:
    """Return the most accurate model that should be fast enough, a few changes away from the best one and not tried.

    None where none should be more accurate than the best one. No further activation is left in float32.

    Args:
        least_speed: images a second over those of the plain int8 model.
    """
    priors = journal.priors()
    if not priors:
        return None
    kept = journal.best_changes()
    saves, takes = _estimate(journal, list(priors))
    tried = {frozenset(changes) for changes, _ in journal.models()}
    now = sum(saves[change] for change in kept)
    found: Exchange | None = None
    for change, without in _moves(kept, [each for each in priors if str(each) not in journal.lost]):
        changes = apply(kept, change, without)
        if frozenset(changes) in tried or sum(takes[each] for each in changes) > 1 / least_speed - 1:
            continue
        distance = (1 - sum(saves[each] for each in changes)) / max(1e-9, 1 - now)
        if distance < (1.0 if found is None else found.distance):
            found = Exchange(change, without, distance)
    return found


def _moves(kept: Sequence[Change], changes: Sequence[Change]) -> Iterator[tuple[Change, tuple[Change, ...]]]:
    for change in changes:
        if change not in kept and change.how is not How.IN_FLOAT:
            others = [each for each in kept if each.activation != change.activation and each != BFLOAT16]
            for count in range(_DROPPED + 1):
                yield from ((change, without) for without in combinations(others, count))


def _estimate(journal: Journal, changes: Sequence[Change]) -> tuple[dict[Change, float], dict[Change, float]]:
    """Return what each change saves of the distance, and what it takes of the time, in shares of the plain model's."""
    priors = journal.priors()
    # A model in bfloat16 that was not kept says nothing about those in float32.
    models = [each for each in journal.models() if BFLOAT16 in changes or BFLOAT16 not in each[0]]
    plain = models[0][1].figures.distance
    has = np.array([[float(change in made) for change in changes] for made, _ in models]).reshape(len(models), -1)
    saved = np.array([1 - step.figures.distance / max(1e-30, plain) for _, step in models])
    timed = [at for at, (_, step) in enumerate(models) if step.figures.speed is not None]
    taken = np.array([1 / (models[at][1].figures.speed or 1.0) - 1 for at in timed])
    expected = np.array([priors[change] for change in changes])
    saves = _posterior(changes, expected[:, 0], has, saved)
    takes = _posterior(changes, expected[:, 1], has[timed], taken)
    least = [-1.0 if change == BFLOAT16 else 0.0 for change in changes]  # no other change makes a model faster
    return dict(zip(changes, saves, strict=True)), dict(zip(changes, map(max, least, takes), strict=True))


def _posterior(changes: Sequence[Change], expected: Float64, has: Float64, measured: Float64) -> list[float]:
    """Return the mean of each change's effect, given sums of effects.

    Args:
        expected: float64 [changes], in advance.
        has: float64 [models, changes], 1 where a model has a change.
        measured: float64 [models], the sum of the effects.
    """
    kind = np.array([[one.how is other.how for other in changes] for one in changes])
    same = np.array([[one.activation == other.activation for other in changes] for one in changes])
    shared = _OF_KIND**2 * kind + _OF_ACTIVATION**2 * (kind & same) + _OF_CHANGE**2 * np.eye(len(changes))
    covariance = shared * np.outer(expected, expected)
    gain = covariance @ has.T @ np.linalg.inv(has @ covariance @ has.T + _ERROR**2 * np.eye(len(measured)))
    found: list[float] = (expected + gain @ (measured - has @ expected)).tolist()
    return found
