"""Block OBS against brute force: least squares over what remains, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from approxrt.pruning.obs import group_curve, structure_errors, tile_curve, unit_errors


def problem(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight f32, A of correlated inputs, row weights that differ."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4 * k, k)) @ (np.eye(k) + 0.6 * rng.normal(size=(k, k)) / np.sqrt(k))
    return rng.normal(size=(n, k)).astype(np.float32), x.T @ x / len(x), rng.uniform(0.5, 2, n)


def least_loss(weight, hessian, rows, gone, dampening=1e-2):
    """1/2 sum_r G_r d H d^T at its least when the inputs `gone` of `weight` are zero and the rest is free."""
    h = hessian + np.eye(len(hessian)) * dampening * np.trace(hessian) / len(hessian)
    kept = np.setdiff1d(np.arange(len(h)), gone)
    total = 0.0
    for row, g in zip(weight.astype(np.float64), rows, strict=True):
        free = np.linalg.solve(h[np.ix_(kept, kept)], h[kept] @ row)
        delta = -row.copy()
        delta[kept] += free
        total += 0.5 * g * delta @ h @ delta
    return total


def tile_inputs(columns, k):
    return np.concatenate([np.arange(4 * c, min(4 * c + 4, k)) for c in columns])


@pytest.mark.parametrize("n, k", [(16, 24), (15, 22), (33, 17)])
def test_the_first_tile_costs_what_least_squares_says(n, k):
    weight, hessian, rows = problem(n, k)
    scores = tile_curve(weight, hessian, rows, at_once=1, dtype=torch.float64)
    for strip, row in enumerate(scores):
        part = slice(16 * strip, min(16 * strip + 16, n))
        alone = [least_loss(weight[part], hessian, rows[part], tile_inputs([c], k)) for c in range(len(row))]
        assert np.argmin(row) == np.argmin(alone)
        np.testing.assert_allclose(row.min(), min(alone), rtol=1e-9)


@pytest.mark.parametrize("k", [24, 22])
def test_scores_are_the_greedy_increases_of_the_least_loss(k):
    weight, hessian, rows = problem(16, k, seed=3)
    scores = tile_curve(weight, hessian, rows, at_once=1, dtype=torch.float64)[0]
    gone: list[int] = []
    before, highest, raised = 0.0, 0.0, False
    while len(gone) < len(scores):
        rest = [c for c in range(len(scores)) if c not in gone]
        losses = [least_loss(weight, hessian, rows, tile_inputs([*gone, c], k)) for c in rest]
        best = rest[int(np.argmin(losses))]
        raised |= min(losses) - before < highest
        highest = max(highest, min(losses) - before)
        np.testing.assert_allclose(scores[best], highest, rtol=1e-8)
        gone.append(best)
        before = min(losses)
    assert not raised  # so that the sum is exact, too
    np.testing.assert_allclose(scores.sum(), before, rtol=1e-8)


def test_several_at_once_cost_exactly_what_they_cost_together():
    weight, hessian, rows = problem(16, 40, seed=5)
    scores = tile_curve(weight, hessian, rows, at_once=3, dtype=torch.float64)[0]
    first = np.argsort(scores)[:3]
    np.testing.assert_allclose(
        scores[first].sum(), least_loss(weight, hessian, rows, tile_inputs(first, 40)), rtol=1e-9
    )


def test_the_share_taken_at_once_hardly_costs_anything():
    """Masks of half the tiles: the least loss is within 5 % of that of the exact order, magnitude's far above."""
    weight, hessian, rows = problem(16, 256, seed=7)
    scale = np.random.default_rng(8).lognormal(0, 1, 256)  # as in trained models, some inputs are far larger
    hessian *= scale[:, None] * scale
    energy = np.square(weight).sum(0).reshape(-1, 4).sum(1)
    exact, fast = (
        tile_curve(weight, hessian, rows, at_once=at_once, dtype=dtype)[0]
        for at_once, dtype in ((1, torch.float64), (None, torch.float32))
    )
    losses = [
        least_loss(weight, hessian, rows, tile_inputs(np.argsort(scores)[:32], 256)) for scores in (exact, fast, energy)
    ]
    assert losses[1] < 1.05 * losses[0]
    assert losses[2] > 1.2 * losses[1]


def test_tiles_that_are_zero_go_first_and_for_nothing():
    weight, hessian, rows = problem(32, 40)
    weight[:16, 8:16] = 0
    scores = tile_curve(weight, hessian, rows)
    assert set(np.argsort(scores[0])[:2]) == {2, 3}
    assert scores[0, 2] == scores[0, 3] == 0
    assert (scores[1] > 0).all()


def test_heads_and_groups_of_units_cost_what_least_squares_says():
    output, down = problem(20, 24, 1), problem(20, 40, 2)
    errors = structure_errors(output, down, head_dim=8)
    assert errors.heads.shape == errors.groups.shape == (3,)
    for found, (weight, hessian, rows), size in ((errors.heads, output, 8), (errors.groups, down, 16)):
        k = weight.shape[1]
        parts = [np.arange(size * i, min(size * i + size, k)) for i in range(3)]
        alone = [least_loss(weight, hessian, rows, part) for part in parts]
        np.testing.assert_allclose(found.min(), min(alone), rtol=1e-9)
        np.testing.assert_allclose(found.sum(), least_loss(weight, hessian, rows, np.arange(k)), rtol=1e-8)
    assert structure_errors(None, down, 8).heads.size == 0


def test_single_units_cost_what_least_squares_says():
    weight, hessian, rows = problem(20, 12, 4)
    alone = [least_loss(weight, hessian, rows, [i]) for i in range(12)]
    np.testing.assert_allclose(unit_errors(weight, hessian, rows), alone, rtol=1e-9)
    np.testing.assert_allclose(group_curve(weight, hessian, rows, 1).min(), min(alone), rtol=1e-9)
