"""Rounding that knows the inputs: each weight's rounding error is made up for by those of its row that come later.

GPTQ (Frantar et al. 2022, arXiv 2210.17323) on the kept weights of block-sparse linears: with H = A + lambda I over the
inputs that a strip of 16 outputs keeps and U the upper Cholesky factor of H^-1, input after input

    q_j = round(w_j / step_j)        w_k -= (w_j - q_j step_j) U_jk / U_jj   for k > j

with w - m, m the group's offset, for w where a kind has offsets (g4, and g6 with -32 steps).

Steps come first, from the plain search (`approxrt.quantization.rtn`): per output for int8; for int4 with the artifact's
group scales, which belong to places in the matrix. So inputs may go in any order, and those of the largest energy go
first, as long as there is the most left to make up for them.

What is measured is tr(dW A dW^T), the mean squared error of the linear's output.
"""

from __future__ import annotations

import numpy as np
import torch

from approxrt.artifact.spec.formats import FORMATS, GROUP_WEIGHTS, TILE_K, TILE_N, LinearKind
from approxrt.artifact.storage.bsr import bsr_to_dense, expand_mask, to_tiles
from approxrt.artifact.storage.groupwise import dequantize_groups, pack_quarters, pack_unsigned
from approxrt.artifact.storage.int4 import pack_nibbles, row_integers, tile_groups, tile_integers
from approxrt.quantization.rtn import quantize_linear

DAMPENING = 1e-2  # lambda as a share of the mean of A's diagonal
BLOCK = 64  # inputs whose errors are passed on at once to those behind them
ROWS = 1024  # outputs at a time: a block of inputs of so many stays in the L2 cache


def round_weights(
    weight: np.ndarray,
    mask: np.ndarray | None,
    hessian: np.ndarray,
    kind: LinearKind,
    grid: dict[str, np.ndarray] | None = None,
) -> tuple[np.ndarray, LinearKind, dict[str, np.ndarray]]:
    """Return (what the artifact's tensors stand for f32[N, K], their kind, the tensors but the bias).

    kind       one of `FORMATS`; with a mask s8 and s4 are stored by tiles
    weight     f32[N, K]
    mask       bool[strips, columns] of the tiles that stay, or None for a dense linear; None for g4, g6 and g8
    hessian    A f32[K, K]: E[x x^T], or the covariance where the bias takes over the mean of the error
    grid       tensors of the same kind and shape whose scales (and offsets) are kept; None chooses them
    """
    n, k = weight.shape
    kept = np.ones((n, k), bool) if mask is None else expand_mask(mask, n, k)
    weight = np.asarray(weight, np.float32) * kept
    stored, tensors = quantize_linear(weight, kind, mask) if grid is None else (kind, grid)
    steps, limits, offsets = steps_of(tensors, n, k), FORMATS[kind].limits, offsets_of(tensors, k)
    q = np.zeros((n, k), np.int8)
    h = np.asarray(hessian, np.float64)
    mean = float(np.diagonal(h).mean())
    damp = DAMPENING * mean if mean > 0 else 1.0
    groups: dict[bytes, list[int]] = {}
    for start in range(0, n, TILE_N):
        groups.setdefault(kept[start].tobytes(), []).append(start)
    for starts in groups.values():
        columns = np.flatnonzero(kept[starts[0]])
        if not len(columns):
            continue
        columns = columns[np.argsort(-np.diagonal(h)[columns], kind="stable")]
        rows = np.concatenate([np.arange(start, min(start + TILE_N, n)) for start in starts])
        place = np.ix_(rows, columns)
        factor = _inverse_factor(h[np.ix_(columns, columns)], damp)
        shifted = weight[place].astype(np.float64) - np.broadcast_to(offsets, (n, k))[place]
        q[place] = _round(shifted, steps[place], factor, limits)
    tensors = with_integers(tensors, q, mask)
    return dequantized_linear(tensors, n, k), stored, tensors


def dequantized_linear(tensors: dict[str, np.ndarray], n: int, k: int) -> np.ndarray:
    """f32[N, K] that a quantised linear's tensors stand for: scale * q, or scale * (m * q4), or by float16 scales."""
    if "scale" not in tensors:
        return dequantize_groups(tensors, k)
    if "q" in tensors:
        integers = tensors["q"]
    elif "q4" in tensors:
        integers = row_integers(tensors["q4"], tensors["group_scale"], k)
    else:
        if "tiles" in tensors:
            tiles = tensors["tiles"]
        else:
            tiles = tile_integers(tensors["tiles4"], tensors["group_scale"], tensors["indptr"])
        integers = bsr_to_dense(tiles, tensors["indices"], tensors["indptr"], n, k)
    weight: np.ndarray = integers.astype(np.float32) * tensors["scale"][:, None]
    return weight


def output_error(change: np.ndarray, hessian: np.ndarray) -> float:
    """tr(dW A dW^T) of a change f32[N, K]."""
    change = np.asarray(change, np.float32)
    # float32 sums of squares: a relative error of about 1e-5.
    return float(np.einsum("nk,nk->n", change @ np.asarray(hessian, np.float32), change).sum(dtype=np.float64))


def _inverse_factor(h: np.ndarray, damp: float) -> np.ndarray:
    """U upper with U^T U = (H + damp I)^-1."""
    matrix = torch.from_numpy(h + damp * np.eye(len(h)))
    # V V^T = H with V upper is the factor of H read from its end to its beginning; then U = V^-1. The inverse itself is
    # not needed: torch.cholesky_inverse alone would take several times as long.
    upper = torch.linalg.cholesky(matrix.flip((0, 1))).flip((0, 1))
    identity = torch.eye(len(h), dtype=torch.float64)
    factor: np.ndarray = torch.linalg.solve_triangular(upper, identity, upper=True).numpy()
    return factor


def _round(weight: np.ndarray, steps: np.ndarray, factor: np.ndarray, limits: tuple[int, int]) -> np.ndarray:
    """i8[R, n], within `limits`, of weight f64[R, n] with steps f64[R, n]; see the module's formula."""
    rows, n = weight.shape
    q = np.empty((rows, n), np.int8)
    for first in range(0, rows, ROWS):
        part = slice(first, min(first + ROWS, rows))
        # Input by input: all outputs of one lie side by side.
        w, step = np.ascontiguousarray(weight[part].T), np.ascontiguousarray(steps[part].T)
        found = np.empty(w.shape, np.int8)
        for start in range(0, n, BLOCK):
            end = min(start + BLOCK, n)
            errors = np.empty((end - start, w.shape[1]))
            for j in range(start, end):
                rounded = np.clip(np.rint(w[j] / step[j]), *limits)
                found[j] = rounded
                errors[j - start] = error = (w[j] - rounded * step[j]) / factor[j, j]
                w[j + 1 : end] -= factor[j, j + 1 : end, None] * error
            w[end:] -= factor[start:end, end:].T @ errors
        q[part] = found.T
    return q


def offsets_of(tensors: dict[str, np.ndarray], k: int) -> np.ndarray:
    """f64[N, K] that the integers of a g4 or g6 matrix count from, or f64[1, K] zeros."""
    if "q2" in tensors:
        return np.repeat(-32 * tensors["group_scale"].astype(np.float64), GROUP_WEIGHTS, axis=1)[:, :k]
    if "group_offset" in tensors:
        return np.repeat(tensors["group_offset"].astype(np.float64), GROUP_WEIGHTS, axis=1)[:, :k]
    return np.zeros((1, k))


def steps_of(tensors: dict[str, np.ndarray], n: int, k: int) -> np.ndarray:
    """f64[N, K]: scale, or scale * m, of every weight; 1 where nothing is stored."""
    if "scale" not in tensors:
        # A group of equal weights has no step: any will do, all of them are 0 steps from its offset.
        step = np.repeat(tensors["group_scale"].astype(np.float64), GROUP_WEIGHTS, axis=1)[:, :k]
        return np.where(step == 0, 1, step)
    scale = tensors["scale"].astype(np.float64)[:, None]
    if "group_scale" not in tensors:
        return np.broadcast_to(scale, (n, k))
    m = tensors["group_scale"].astype(np.float64)
    if "q4" in tensors:
        spread = np.repeat(m, GROUP_WEIGHTS, axis=1)[:, :k]
    else:
        tiles = np.repeat(m[tile_groups(tensors["indptr"])][:, :, None], TILE_K, axis=2)
        spread = bsr_to_dense(tiles, tensors["indices"], tensors["indptr"], n, k)
        spread[spread == 0] = 1
    return spread * scale


def with_integers(
    tensors: dict[str, np.ndarray], q: np.ndarray, mask: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The tensors with other integers i8[N, K], on the same scales."""
    if "q" in tensors:
        return tensors | {"q": q}
    if "q2" in tensors:
        flat = q.astype(np.uint8)
        return tensors | {"q4": pack_unsigned(flat & 15), "q2": pack_quarters(flat >> 4)}
    if "group_offset" in tensors:
        return tensors | {"q4": pack_unsigned(q.astype(np.uint8))}
    if "q4" in tensors:
        return tensors | {"q4": pack_nibbles(q)}
    tiles = np.ascontiguousarray(to_tiles(q)[mask])
    return tensors | ({"tiles": tiles} if "tiles" in tensors else {"tiles4": pack_nibbles(tiles)})
