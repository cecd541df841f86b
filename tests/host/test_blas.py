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


def test_add_gram_adds_to_the_lower_triangle_and_leaves_the_upper() -> None:
    rng = np.random.default_rng(1)
    before, rows = rng.normal(size=(301, 301)).astype(np.float32), rng.normal(size=(77, 301)).astype(np.float32)
    matrix = before.copy()
    if not blas.add_gram(matrix, rows):
        pytest.skip("numpy has another BLAS here")
    wanted = before + np.tril(rows.astype(np.float64).T @ rows)
    np.testing.assert_allclose(matrix, wanted, atol=1e-4)
    np.testing.assert_array_equal(np.triu(matrix, 1), np.triu(before, 1))


def test_factor_lower_is_the_cholesky_factor_below_the_diagonal() -> None:
    rows = np.random.default_rng(2).normal(size=(900, 333))
    matrix = (rows.T @ rows / 900).astype(np.float32)
    factor = matrix.copy()
    if not blas.factor_lower(factor):
        pytest.skip("numpy has another BLAS here")
    np.testing.assert_allclose(np.tril(factor), np.linalg.cholesky(rows.T @ rows / 900), atol=1e-5)
    np.testing.assert_array_equal(np.triu(factor, 1), np.triu(matrix, 1))


def test_factor_lower_raises_when_the_matrix_is_not_positive_definite() -> None:
    matrix = -np.eye(5, dtype=np.float32)
    try:
        assert not blas.factor_lower(matrix)
    except np.linalg.LinAlgError:
        return
    pytest.skip("numpy has another BLAS here")


def test_blas_routines_leave_other_arrays_to_numpy() -> None:
    rows = np.ones((4, 6), np.float32)
    assert not blas.add_gram(np.zeros((6, 6)), rows)  # type: ignore[arg-type]  # of float64
    assert not blas.add_gram(np.zeros((6, 12), np.float32)[:, ::2], rows)
    assert not blas.factor_lower(np.eye(6))  # type: ignore[arg-type]
