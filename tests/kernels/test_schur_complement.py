"""Schur complements against numpy's, within the bound of float64 sums."""

from __future__ import annotations

import numpy as np
import pytest
from levels import every_level

from approxrt._C import kernels

EPS = float(np.finfo(np.float64).eps)


def symmetric(size: int, seed: int) -> np.ndarray:
    """Positive definite, with a condition of about ten."""
    x = np.random.default_rng(seed).standard_normal((4 * size, size))
    matrix: np.ndarray = x.T @ x / len(x) + 0.1 * np.eye(size)
    return matrix


@every_level
# Around a panel of 12 and of 24 columns and a block of four of them; m around a tile and beyond a panel.
@pytest.mark.parametrize("n", [1, 7, 11, 12, 13, 23, 24, 25, 48, 95, 96, 97, 150])
@pytest.mark.parametrize("m", [4, 8, 36])
def test_equals_numpy(isa: str, n: int, m: int) -> None:
    a = symmetric(n + m, n)
    corner, rows = a[n:, n:], a[n:, :n]
    u = np.linalg.solve(np.linalg.cholesky(corner), rows)
    found = kernels.schur_complement(a, m, isa)
    # m products and a factor of size m: each sum errs by (m + 2) eps of its magnitudes (Higham 2002, 3.1), the solution
    # by as much times the corner's condition (8.5), in numpy's and here.
    bound = 4 * (m + 2) * EPS * np.linalg.cond(corner) * (np.abs(u).T @ np.abs(u) + np.abs(a[:n, :n]))
    assert (np.abs(found - (a[:n, :n] - u.T @ u)) <= bound).all()
    np.testing.assert_array_equal(found, found.T)


@every_level
def test_an_entry_does_not_depend_on_its_neighbours(isa: str) -> None:
    a = symmetric(100, 1)
    whole = kernels.schur_complement(a, 8, isa)
    fewer = kernels.schur_complement(np.ascontiguousarray(a[60:, 60:]), 8, isa)
    np.testing.assert_array_equal(whole[60:, 60:], fewer)


@pytest.mark.parametrize("m", [0, 3, 12])
def test_shapes_are_checked(m: int) -> None:
    with pytest.raises(ValueError):
        kernels.schur_complement(symmetric(12, 0), m)
