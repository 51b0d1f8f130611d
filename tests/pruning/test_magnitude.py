"""Tiles: views of odd-sized matrices, block-sparse round trips, and which tiles magnitude keeps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specs import random_tensors, small_spec

from approxrt.artifact.spec.formats import TILE_K, TILE_N
from approxrt.artifact.storage.bsr import bsr_to_dense, dense_to_bsr, expand_mask, grid, to_tiles
from approxrt.pruning.magnitude import prunable_linears, prune_tiles, tile_scores

SIDES_N = (1, TILE_N - 1, TILE_N, TILE_N + 1, 2 * TILE_N, 3 * TILE_N + 5)
SIDES_K = (1, TILE_K - 1, TILE_K, TILE_K + 1, 2 * TILE_K, 9 * TILE_K + 2)


@pytest.mark.parametrize("n", SIDES_N)
@pytest.mark.parametrize("k", SIDES_K)
def test_tiles_hold_the_matrix(n: int, k: int) -> None:
    matrix = np.arange(1, n * k + 1).reshape(n, k)
    tiles = to_tiles(matrix)
    assert tiles.shape == (*grid(n, k), TILE_N, TILE_K)
    for o, i in ((0, 0), (n - 1, 0), (0, k - 1), (n - 1, k - 1), (n // 2, k // 2)):
        assert tiles[o // TILE_N, i // TILE_K, o % TILE_N, i % TILE_K] == matrix[o, i]
    assert tiles.sum() == matrix.sum(), "padding is zero"


@given(
    n=st.sampled_from(SIDES_N),
    k=st.sampled_from(SIDES_K),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_bsr_round_trip(n: int, k: int, density: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.integers(-127, 128, (n, k), dtype=np.int8)
    mask = rng.random(grid(n, k)) < density
    tiles, indices, indptr = dense_to_bsr(q, mask)
    assert (tiles.dtype, indices.dtype, indptr.dtype) == (np.int8, np.uint16, np.int32)
    assert len(tiles) == len(indices) == indptr[-1] == mask.sum()
    assert tiles.flags.c_contiguous
    np.testing.assert_array_equal(bsr_to_dense(tiles, indices, indptr, n, k), q * expand_mask(mask, n, k))
    for strip in range(len(mask)):
        np.testing.assert_array_equal(indices[indptr[strip] : indptr[strip + 1]], np.nonzero(mask[strip])[0])


def test_a_mask_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="does not cover"):
        dense_to_bsr(np.zeros((17, 5), np.int8), np.ones((1, 2), bool))


@pytest.mark.parametrize("n", SIDES_N)
@pytest.mark.parametrize("k", SIDES_K)
def test_scores_are_energies(n: int, k: int) -> None:
    weight = np.random.default_rng(0).normal(size=(n, k)).astype(np.float32)
    scores = tile_scores(weight)
    last = weight[(n - 1) // TILE_N * TILE_N :, (k - 1) // TILE_K * TILE_K :]
    assert scores.shape == grid(n, k)
    assert scores[-1, -1] == pytest.approx(np.square(last).sum(), rel=1e-5)
    assert scores.sum() == pytest.approx(np.square(weight).sum(), rel=1e-5)


@pytest.mark.parametrize("density", [1.0, 0.5, 0.25, 0.01])
def test_each_linear_keeps_its_share_and_the_strongest(density: float) -> None:
    spec = small_spec("f32")
    tensors = random_tensors(spec)
    masks = prune_tiles(spec, tensors, density)
    assert set(masks) == set(prunable_linears(spec)) and len(masks) == 6
    assert not any(name.startswith(("head", "embeddings")) for name in masks)
    for name, mask in masks.items():
        scores = tile_scores(tensors[f"{name}.weight"])
        assert mask.sum() == max(1, round(density * mask.size))
        if not mask.all():
            assert scores[mask].min() >= scores[~mask].max()


def test_global_scope_compares_linears() -> None:
    spec = small_spec("f32")
    tensors = random_tensors(spec)
    tensors["layers.0.ffn.up.weight"] = tensors["layers.0.ffn.up.weight"] * 100
    tensors["layers.0.attention.key.weight"] = tensors["layers.0.attention.key.weight"] * 1e-3
    masks = prune_tiles(spec, tensors, 0.3, scope="global")
    total, kept = sum(mask.size for mask in masks.values()), sum(mask.sum() for mask in masks.values())
    assert kept == pytest.approx(0.3 * total, abs=6)
    assert masks["layers.0.ffn.up"].all()
    assert masks["layers.0.attention.key"].sum() == 1, "no linear is emptied"


def test_equal_scores_keep_the_first() -> None:
    spec = small_spec("f32")
    tensors = random_tensors(spec)
    tensors["layers.0.ffn.up.weight"] = np.ones((51, 40), np.float32)
    mask = prune_tiles(spec, tensors, 0.5)["layers.0.ffn.up"]
    assert mask.ravel()[:20].all() and not mask.ravel()[20:].any()


@pytest.mark.parametrize("density", [0.0, -1, 1.5, float("nan")])
def test_impossible_densities(density: float) -> None:
    spec = small_spec("f32")
    with pytest.raises(ValueError, match="density is"):
        prune_tiles(spec, random_tensors(spec), density)
