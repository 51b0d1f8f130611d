"""Second-order scores: what the loss gains when weights go and all others make up for them as well as they can.

For y = W x with H = A + lambda I, A = E[x x^T], P = H^-1 and weights G_r of outputs
(`approxrt.significance.statistics`), removing the inputs S of a set of rows costs (Optimal Brain Surgeon, Hassibi &
Stork 1992; its blocks: oBERT, Kurtic et al. 2022, arXiv 2203.07259)

    rho(S) = 1/2 sum_r G_r w_rS (P_SS)^-1 w_rS^T

and leaves W - W_S (P_SS)^-1 P_S, and P - P_,S (P_SS)^-1 P_S,: the same problem over the inputs that remain. Outputs do
not share inputs by themselves, but the 16 of a strip lose a tile together, so that a strip has one P of its own.

Groups go greedily, smallest rho first. A step takes a share of those that are left (`SHARE`, at least one), chosen by
their own rho; the step's update and cost are exact for all of them together, and the cost is dealt out in proportion to
their own. Early steps take many groups that cost nothing, the last ones take one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from approxrt.artifact.spec.formats import TILE_K, TILE_N
from approxrt.artifact.storage.bsr import grid

SHARE = 1 / 20
COMPACT = 0.8  # share of groups left at which matrices are gathered anew
MEMORY = 384 << 20  # bytes of the inverses that are worked on at once


def dampened(hessian: np.ndarray, dampening: float) -> Tensor:
    """f64[K, K]: A + lambda I with lambda = `dampening` * mean of A's diagonal (1 if A is zero)."""
    h = torch.from_numpy(np.asarray(hessian)).double()
    mean = float(h.diagonal().mean())
    return h + torch.eye(len(h), dtype=torch.float64) * (dampening * (mean if mean > 0 else 1.0))


def tile_curve(
    weight: np.ndarray,
    hessian: np.ndarray,
    row_weights: np.ndarray,
    dampening: float = 1e-2,
    at_once: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> np.ndarray:
    """f64[strips, columns]: the rho at which each tile of f32[N, K] goes, never less than that of one before it.

    Keeping the tiles of the highest scores keeps what block OBS keeps; the sum of the scores of those that go estimates
    what the loss gains, in the unit of `row_weights` f32[N] (a token's for `Statistics.gradients`).

    hessian   A f32[K, K]
    at_once   tiles a strip loses in a step; None: a share, see the module's text; 1: the exact greedy order
    dtype     of the work; float32 agrees with float64 to about 1e-4
    """
    n, k = weight.shape
    strips, columns = grid(n, k)
    w = torch.zeros(strips * TILE_N, columns * TILE_K, dtype=dtype)
    w[:n, :k] = torch.from_numpy(np.asarray(weight))
    g = torch.zeros(strips * TILE_N, dtype=dtype)
    g[:n] = torch.from_numpy(np.asarray(row_weights))
    # Inputs past K are independent of all others, and their weights are zero.
    inverse = torch.eye(columns * TILE_K, dtype=torch.float64)
    inverse[:k, :k] = torch.cholesky_inverse(torch.linalg.cholesky(dampened(hessian, dampening)))
    inverse = inverse.to(dtype)
    scores = np.empty((strips, columns))
    size = max(1, MEMORY // (inverse.numel() * inverse.element_size()))
    for start in range(0, strips, size):
        rows = slice(start, min(start + size, strips))
        part = w.view(strips, TILE_N, -1)[rows].clone()
        p = inverse.expand(len(part), -1, -1).clone()
        scores[rows] = _curve(part, p, g.view(strips, TILE_N)[rows], TILE_K, at_once)
    return scores


def group_curve(
    weight: np.ndarray,
    hessian: np.ndarray,
    row_weights: np.ndarray,
    size: int,
    dampening: float = 1e-2,
    at_once: int | None = 1,
) -> np.ndarray:
    """f64[ceil(K / size)]: the same for groups of `size` neighbouring inputs of all outputs: heads, FFN units."""
    n, k = weight.shape
    count = -(-k // size)
    w = torch.zeros(1, n, count * size, dtype=torch.float64)
    w[0, :, :k] = torch.from_numpy(np.asarray(weight))
    p = torch.eye(count * size, dtype=torch.float64)[None].clone()
    p[0, :k, :k] = torch.cholesky_inverse(torch.linalg.cholesky(dampened(hessian, dampening)))
    g = torch.from_numpy(np.asarray(row_weights)).double()[None]
    return _curve(w, p, g, size, at_once)[0]


def unit_errors(
    weight: np.ndarray, hessian: np.ndarray, row_weights: np.ndarray, dampening: float = 1e-2
) -> np.ndarray:
    """f64[K]: rho of each single input of all outputs (an FFN unit's column of `ffn.down`), all others still there."""
    diagonal = torch.cholesky_inverse(torch.linalg.cholesky(dampened(hessian, dampening))).diagonal()
    energy = np.asarray(row_weights, np.float64) @ np.square(weight, dtype=np.float64)
    result: np.ndarray = 0.5 * energy / diagonal.numpy()
    return result


@dataclass(frozen=True)
class StructureErrors:
    """rho as they go one after the other: heads f64[num_heads], groups f64[ceil(units / 16)] of 16 FFN units."""

    heads: np.ndarray
    groups: np.ndarray


def structure_errors(
    output: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
    down: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
    head_dim: int,
    dampening: float = 1e-2,
) -> StructureErrors:
    """Of one layer's heads (columns of the output projection) and groups of FFN units (columns of `ffn.down`).

    `output` and `down` are (weight [N, K], A [K, K], row weights [N]) of those linears; None for a removed block.
    """
    none = np.zeros(0)
    return StructureErrors(
        none if output is None else group_curve(*output, head_dim, dampening),
        none if down is None else group_curve(*down, TILE_N, dampening),
    )


def _curve(w: Tensor, p: Tensor, g: Tensor, size: int, at_once: int | None) -> np.ndarray:
    """f64[B, groups] from w [B, R, K], p [B, K, K] (both are overwritten) and g [B, R]; K is a multiple of `size`."""
    batch, groups = len(w), w.shape[2] // size
    scores = np.zeros((batch, groups))
    highest = torch.zeros(batch, dtype=torch.float64)
    places = torch.arange(groups).expand(batch, -1).clone()  # which group a present one is
    gone = torch.zeros(batch, groups, dtype=torch.bool)  # of the present ones
    left, within = groups, torch.arange(size)
    lines = torch.arange(batch)[:, None]
    while left:
        if left < COMPACT * gone.shape[1]:
            keep = torch.sort(torch.argsort(gone.to(torch.int8), dim=1, stable=True)[:, :left], dim=1).values
            index = (keep[:, :, None] * size + within).reshape(batch, -1)
            w = w.gather(2, index[:, None].expand(-1, w.shape[1], -1))
            p = torch.stack([matrix[i][:, i] for matrix, i in zip(p, index, strict=True)])
            places, gone = places.gather(1, keep), torch.zeros(batch, left, dtype=torch.bool)
        count = min(left, at_once if at_once is not None else max(1, int(SHARE * left)))
        own = _own_errors(w, p, g, size, gone)
        chosen = torch.topk(own, count, dim=1, largest=False, sorted=False).indices
        own = own.gather(1, chosen)
        index = (chosen[:, :, None] * size + within).reshape(batch, -1)
        rows = p.gather(1, index[:, :, None].expand(-1, -1, p.shape[2]))
        square = rows.gather(2, index[:, None].expand(-1, index.shape[1], -1))
        factor = _cholesky(square)
        u = torch.linalg.solve_triangular(factor, rows, upper=False)
        v = w.gather(2, index[:, None].expand(-1, w.shape[1], -1)).transpose(1, 2)
        v = torch.linalg.solve_triangular(factor, v, upper=False)
        together = 0.5 * (v.square().sum(1) * g).sum(1)
        total = own.sum(1)
        share = torch.where(total[:, None] > 0, own / total.clamp(min=1e-38)[:, None], 1 / count)
        # Never less than a group that went before.
        cost = torch.maximum((share * together[:, None]).double(), highest[:, None])
        highest = cost.amax(1)
        scores[lines.numpy(), places.gather(1, chosen).numpy()] = cost.numpy()
        gone.scatter_(1, chosen, True)
        left -= count
        if left:
            w.baddbmm_(v.transpose(1, 2), u, alpha=-1)
            p.baddbmm_(u.transpose(1, 2), u, alpha=-1)
    return scores


def _own_errors(w: Tensor, p: Tensor, g: Tensor, size: int, gone: Tensor) -> Tensor:
    """[B, groups]: rho of each group alone; infinite where it has gone."""
    batch, rows, _ = w.shape
    groups = gone.shape[1]
    blocks = p.view(batch, groups, size, groups, size).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    # What has gone left zeros behind, which have no factor.
    blocks = torch.where(gone[:, :, None, None], torch.eye(size, dtype=p.dtype), blocks)
    parts = w.view(batch, rows, groups, size)
    if size > TILE_K:
        x = torch.linalg.solve_triangular(_cholesky(blocks), parts.permute(0, 2, 3, 1), upper=False)
        rho = 0.5 * (x.square().sum(2) * g[:, None]).sum(2)
    else:
        rho = 0.5 * _small_errors(blocks, parts, g)
    return rho.masked_fill_(gone, torch.inf)


def _small_errors(blocks: Tensor, parts: Tensor, g: Tensor) -> Tensor:
    """[B, groups]: sum_r g_r w_r block^-1 w_r^T by Gauss elimination, all blocks [B, groups, s, s] side by side.

    With M = sum_r g_r w_r^T w_r this is tr(block^-1 M), and the elimination of both together leaves it on the diagonal:
    a hundred times faster than a library call for every block of 4 x 4.
    """
    size = blocks.shape[-1]
    weighted = (parts * g[:, :, None, None]).permute(0, 2, 3, 1)
    m = (weighted @ parts.permute(0, 2, 1, 3)).clone()
    b = blocks.clone()
    total = torch.zeros(b.shape[:2], dtype=b.dtype)
    for i in range(size):
        # The schur complement of entry i: what a block's entry i costs once those before it have gone.
        pivot = b[:, :, i, i].clamp(min=torch.finfo(b.dtype).tiny)
        total += m[:, :, i, i] / pivot
        if i + 1 < size:
            f = b[:, :, i + 1 :, i] / pivot[:, :, None]
            b[:, :, i + 1 :, i + 1 :] -= f[:, :, :, None] * b[:, :, None, i, i + 1 :]
            row = m[:, :, i, i + 1 :]
            corner = m[:, :, i, i][:, :, None, None] * f[:, :, :, None] * f[:, :, None]
            m[:, :, i + 1 :, i + 1 :] += (
                corner - f[:, :, :, None] * row[:, :, None] - row[:, :, :, None] * f[:, :, None]
            )
    return total


def _cholesky(square: Tensor) -> Tensor:
    """Lower factors; where rounding has left a matrix that has none, of one with a little more on its diagonal."""
    factor, info = torch.linalg.cholesky_ex(square)
    extra = 1e-6
    while bool((info > 0).any()):
        scale = square.diagonal(dim1=-2, dim2=-1).abs().amax(-1).clamp(min=1e-30)
        more = torch.diag_embed((extra * scale * (info > 0))[..., None].expand(*scale.shape, square.shape[-1]))
        factor, info = torch.linalg.cholesky_ex(square + more)
        extra *= 10
    return factor
