"""Block OBS against brute force: least squares over what remains, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from levels import SUPPORTED

from approxrt.pruning.obs import CurveOptions, channel_errors, dampened, group_curve, inverse_moments, tile_curve


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
    scores = tile_curve(weight, hessian, rows, CurveOptions(at_once=1))
    for strip, row in enumerate(scores):
        part = slice(16 * strip, min(16 * strip + 16, n))
        alone = [least_loss(weight[part], hessian, rows[part], tile_inputs([c], k)) for c in range(len(row))]
        assert np.argmin(row) == np.argmin(alone)
        np.testing.assert_allclose(row.min(), min(alone), rtol=1e-9)


@pytest.mark.parametrize("k", [24, 22])
def test_scores_are_the_greedy_increases_of_the_least_loss(k):
    weight, hessian, rows = problem(16, k, seed=3)
    scores = tile_curve(weight, hessian, rows, CurveOptions(at_once=1))[0]
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
    scores = tile_curve(weight, hessian, rows, CurveOptions(at_once=3))[0]
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
    exact, fast = (tile_curve(weight, hessian, rows, CurveOptions(at_once=at_once))[0] for at_once in (1, None))
    losses = [
        least_loss(weight, hessian, rows, tile_inputs(np.argsort(scores)[:32], 256)) for scores in (exact, fast, energy)
    ]
    assert losses[1] < 1.05 * losses[0]
    assert losses[2] > 1.2 * losses[1]


@pytest.mark.parametrize("isa", [isa for isa in ("scalar", "avx2", "avx512") if isa in SUPPORTED])
@pytest.mark.parametrize("at_once", [None, 1, 7])
@pytest.mark.parametrize("n, k", [(16, 3), (33, 100), (16, 161), (47, 204)])
def test_the_kernel_is_the_definition(monkeypatch, isa, n, k, at_once):
    """Tiles go in the order of `group_curve`, strip by strip, at its costs.

    Both are float64 and differ in the order of sums alone. The error of a cost is that of P's Schur complements, whose
    condition is below that of H: K eps cond(H) of a relative error (Higham 2002, 10.1), 1e-10 with H's below 1e4.
    """
    monkeypatch.setenv("APPROXRT_ISA", isa)
    weight, hessian, rows = problem(n, k, seed=9)
    assert np.linalg.cond(dampened(hessian, 1e-2)) < 1e4
    found = tile_curve(weight, hessian, rows, CurveOptions(at_once=at_once), threads=2)
    parts = [slice(start, start + 16) for start in range(0, n, 16)]
    wanted = np.stack(
        [group_curve(weight[part], hessian, rows[part], 4, CurveOptions(at_once=at_once)) for part in parts]
    )
    np.testing.assert_array_equal(np.argsort(found, axis=1, kind="stable"), np.argsort(wanted, axis=1, kind="stable"))
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_strips_do_not_depend_on_each_other_nor_on_threads():
    weight, hessian, rows = problem(80, 60)
    together = tile_curve(weight, hessian, rows, threads=2)
    np.testing.assert_array_equal(together, tile_curve(weight, hessian, rows, threads=1))
    np.testing.assert_array_equal(together[1:3], tile_curve(weight[16:48], hessian, rows[16:48]))


@pytest.mark.parametrize("at_once", [None, 1])
def test_a_moment_without_full_rank_has_a_curve(at_once):
    """Fewer texts than inputs, nearly without dampening: what rounding makes of P has no factor by itself."""
    x = np.random.default_rng(3).normal(size=(5, 64))
    weight = problem(16, 64)[0]
    scores = tile_curve(weight, x.T @ x / 5, np.ones(16), CurveOptions(1e-14, at_once))
    assert np.isfinite(scores).all() and (scores >= 0).all()


def test_a_moment_that_is_none_is_refused():
    weight, hessian, rows = problem(16, 24)
    with pytest.raises(torch.linalg.LinAlgError):
        tile_curve(weight, -hessian, rows)


def test_moments_are_inverted():
    _, hessian, _ = problem(1, 40)
    inverse = inverse_moments(hessian, 1e-2).numpy()
    np.testing.assert_array_equal(inverse, inverse.T)
    np.testing.assert_allclose(inverse @ dampened(hessian, 1e-2).numpy(), np.eye(40), atol=1e-10)


def test_tiles_that_are_zero_go_first_and_for_nothing():
    weight, hessian, rows = problem(32, 40)
    weight[:16, 8:16] = 0
    scores = tile_curve(weight, hessian, rows)
    assert set(np.argsort(scores[0])[:2]) == {2, 3}
    assert scores[0, 2] == scores[0, 3] == 0
    assert (scores[1] > 0).all()


@pytest.mark.parametrize("n, k, size", [(20, 24, 8), (20, 40, 16)])
def test_heads_and_groups_of_units_cost_what_least_squares_says(n, k, size):
    weight, hessian, rows = problem(n, k, size)
    found = group_curve(weight, hessian, rows, size)
    parts = [np.arange(size * i, min(size * i + size, k)) for i in range(3)]
    alone = [least_loss(weight, hessian, rows, part) for part in parts]
    np.testing.assert_allclose(found.min(), min(alone), rtol=1e-9)
    np.testing.assert_allclose(found.sum(), least_loss(weight, hessian, rows, np.arange(k)), rtol=1e-8)


def test_single_units_cost_what_least_squares_says():
    weight, hessian, rows = problem(20, 12, 4)
    alone = [least_loss(weight, hessian, rows, [i]) for i in range(12)]
    np.testing.assert_allclose(channel_errors(weight, hessian, rows), alone, rtol=1e-9)
    np.testing.assert_allclose(group_curve(weight, hessian, rows, 1).min(), min(alone), rtol=1e-9)
