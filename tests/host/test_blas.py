"""The number of threads of numpy's BLAS."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.host import blas


def _count() -> int:
    library = blas._openblas()
    if library is None:
        pytest.skip("numpy has another BLAS here")
    return library[0]()


def test_blas_threads_holds_within_the_block_and_is_undone_when_it_fails() -> None:
    before = _count()
    with pytest.raises(ZeroDivisionError), blas.blas_threads(1):
        assert _count() == 1
        raise ZeroDivisionError
    assert _count() == before


def test_blas_threads_gives_the_same_product() -> None:
    matrix = np.random.default_rng(0).normal(size=(700, 300)).astype(np.float32)
    with blas.blas_threads(1):
        found = matrix.T @ matrix
    np.testing.assert_allclose(found, np.einsum("ij,ik->jk", matrix, matrix, optimize=False), atol=1e-3)


def test_blas_threads_does_nothing_when_numpy_has_another_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _count()
    monkeypatch.setattr(blas, "_openblas", lambda: None)
    with blas.blas_threads(before + 1):
        monkeypatch.undo()
        assert _count() == before
