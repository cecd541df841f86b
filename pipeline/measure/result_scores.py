"""The scores in a results folder, and the best classes of each image by them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.data.npz import read_result_npz
from pipeline.errors import DataError
from pipeline.onnx_models.scores import Scores
from pipeline.quant.divergence import Divergence
from pipeline.run.answer import Indices, find_finite, rank_classes
from pipeline.run.plan import Entry

TOP = 5
_RESULTS_AT_ONCE = 256  # images whose scores fit in the cache


def load_ranks(entries: Sequence[Entry], class_count: int) -> Indices:
    """Return the best classes of every result, best first: [images, up to 5].

    Raises:
        DataError: a result is damaged, holds NaN or Inf, or has another number of classes.
    """
    return np.concatenate([rank_classes(scores, TOP) for scores in _read_blocks(entries, class_count)])


def load_paired(
    entries: Sequence[Entry], reference: Sequence[Entry], class_count: int, scores: Scores | None = None
) -> tuple[Indices, Indices, Divergence]:
    """Return the best classes of both, and the divergence of their scores; raises as `load_ranks`."""
    divergence = Divergence(scores)
    ranks: tuple[list[Indices], list[Indices]] = ([], [])
    blocks = zip(_read_blocks(entries, class_count), _read_blocks(reference, class_count), strict=True)
    for answers, reference_answers in blocks:
        divergence.add(reference_answers, answers)
        for found, block in zip(ranks, (answers, reference_answers), strict=True):
            found.append(rank_classes(block, TOP))
    return np.concatenate(ranks[0]), np.concatenate(ranks[1]), divergence


def _read_blocks(entries: Sequence[Entry], class_count: int) -> Iterator[npt.NDArray[np.float32]]:
    for start in range(0, len(entries), _RESULTS_AT_ONCE):
        part = entries[start : start + _RESULTS_AT_ONCE]
        scores = np.empty((len(part), class_count), np.float32)
        for row, entry in zip(scores, part, strict=True):
            found = read_result_npz(entry.result)[0]
            if found.size != class_count:
                raise DataError(f"{entry.result}: {found.size} classes, expected {class_count}; check --label")
            row[:] = found
        finite = find_finite(scores)
        if not finite.all():
            raise DataError(f"{part[int(np.argmin(finite))].result}: holds NaN or Inf; run bench again")
        yield scores
