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

import approxrt._C as _C
from approxrt.runtime.cpu.engine import forced_isa
from approxrt.runtime.threads import resolve_threads

SHARE = 1 / 20
COMPACT = 0.8  # share of groups left at which matrices are gathered anew


def dampened(hessian: np.ndarray, dampening: float) -> Tensor:
    """f64[K, K]: A + lambda I with lambda = `dampening` * mean of A's diagonal (1 if A is zero)."""
    h = torch.from_numpy(np.asarray(hessian)).double()
    mean = float(h.diagonal().mean())
    return h + torch.eye(len(h), dtype=torch.float64) * (dampening * (mean if mean > 0 else 1.0))


def inverse_moments(hessian: np.ndarray, dampening: float) -> Tensor:
    """f64[K, K]: P = (A + lambda I)^-1, exactly symmetric.

    Raises torch.linalg.LinAlgError where A is no second moment.
    """
    # By the factor's inverse: torch.cholesky_inverse takes 20 times as long.
    identity = torch.eye(len(hessian), dtype=torch.float64)
    factor = torch.linalg.solve_triangular(torch.linalg.cholesky(dampened(hessian, dampening)), identity, upper=False)
    inverse = factor.T @ factor
    return (inverse + inverse.T) / 2


@dataclass(frozen=True)
class CurveOptions:
    """Say how groups go.

    dampening   lambda as a share of the mean of A's diagonal
    at_once     groups that go in a step; None: a share, see the module's text; 1: the exact greedy order
    """

    dampening: float = 1e-2
    at_once: int | None = None


def tile_curve(
    weight: np.ndarray,
    hessian: np.ndarray,
    row_weights: np.ndarray,
    options: CurveOptions = CurveOptions(),
    threads: int | None = None,
) -> np.ndarray:
    """f64[strips, columns]: the rho at which each tile of f32[N, K] goes, never less than that of one before it.

    Keeping the tiles of the highest scores keeps what block OBS keeps; the sum of the scores of those that go estimates
    what the loss gains, in the unit of `row_weights` f32[N] (a token's for `Statistics.gradients`). A strip's row is
    `group_curve` of its outputs and groups of TILE_K inputs, by a kernel (csrc/pruning) that holds K x K float64 values
    a thread and takes about N K^3 / 48 multiply-adds.

    hessian   A f32[K, K]
    options   `at_once` is a strip's
    threads   None: all that the process may use
    """
    return _C.tile_curve(
        np.ascontiguousarray(weight, np.float32),
        inverse_moments(hessian, options.dampening).numpy(),
        np.ascontiguousarray(row_weights, np.float64),
        SHARE,
        options.at_once or 0,
        forced_isa(),
        resolve_threads(threads),
    )


def group_curve(
    weight: np.ndarray,
    hessian: np.ndarray,
    row_weights: np.ndarray,
    size: int,
    options: CurveOptions = CurveOptions(at_once=1),
) -> np.ndarray:
    """f64[ceil(K / size)]: the same for groups of `size` neighbouring inputs of all outputs: heads, FFN channels."""
    n, k = weight.shape
    count = -(-k // size)
    w = torch.zeros(n, count * size, dtype=torch.float64)
    w[:, :k] = torch.from_numpy(np.asarray(weight))
    # Inputs past K are independent of all others, and their weights are zero.
    p = torch.eye(count * size, dtype=torch.float64)
    p[:k, :k] = inverse_moments(hessian, options.dampening)
    return _curve(w, p, torch.from_numpy(np.asarray(row_weights)).double(), size, options.at_once)


def channel_errors(
    weight: np.ndarray, hessian: np.ndarray, row_weights: np.ndarray, dampening: float = 1e-2
) -> np.ndarray:
    """f64[K]: rho of each single input of all outputs (an FFN channel's column of `ffn.down`), all others still in."""
    diagonal = inverse_moments(hessian, dampening).diagonal()
    energy = np.asarray(row_weights, np.float64) @ np.square(weight, dtype=np.float64)
    result: np.ndarray = 0.5 * energy / diagonal.numpy()
    return result


def _curve(w: Tensor, p: Tensor, g: Tensor, size: int, at_once: int | None) -> np.ndarray:
    """f64[groups] from w [R, K], p [K, K] (both are overwritten) and g [R], all f64; K is a multiple of `size`.

    This is the definition of `tile_curve`, too (csrc/pruning/tile_curve.cpp).
    """
    left = w.shape[1] // size
    scores, highest = np.zeros(left), 0.0
    places = torch.arange(left)  # which group a present one is
    gone = torch.zeros(left, dtype=torch.bool)  # of the present ones
    while left:
        if left < COMPACT * len(gone):
            index = _inputs(torch.nonzero(~gone)[:, 0], size)
            w, p = w[:, index], p[index][:, index]
            places, gone = places[~gone], torch.zeros(left, dtype=torch.bool)
        count = min(left, at_once if at_once is not None else max(1, int(SHARE * left)))
        own = _own_errors(w, p, g, size, gone)
        # Of equals those that come first.
        chosen = torch.sort(own, stable=True).indices[:count]
        own, index = own[chosen], _inputs(chosen, size)
        rows = p[index]
        factor = _cholesky(rows[:, index])
        u = torch.linalg.solve_triangular(factor, rows, upper=False)
        v = torch.linalg.solve_triangular(factor, w[:, index].T, upper=False)
        together = 0.5 * (v.square().sum(0) * g).sum()
        total = own.sum()
        share = own / total.clamp(min=1e-38) if total > 0 else torch.full((count,), 1 / count, dtype=torch.float64)
        # Never less than a group that went before.
        cost = (share * together).clamp(min=highest)
        highest = float(cost.max())
        scores[places[chosen].numpy()] = cost.numpy()
        gone[chosen] = True
        left -= count
        if left:
            w.addmm_(v.T, u, alpha=-1)
            p.addmm_(u.T, u, alpha=-1)
    return scores


def _inputs(groups: Tensor, size: int) -> Tensor:
    """The inputs of these groups, in their order."""
    return (groups[:, None] * size + torch.arange(size)).reshape(-1)


def _own_errors(w: Tensor, p: Tensor, g: Tensor, size: int, gone: Tensor) -> Tensor:
    """[groups]: rho of each group alone; infinite where it has gone."""
    groups = len(gone)
    blocks = p.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    # What has gone left zeros behind, which have no factor.
    blocks = torch.where(gone[:, None, None], torch.eye(size, dtype=p.dtype), blocks)
    x = torch.linalg.solve_triangular(_cholesky(blocks), w.view(-1, groups, size).permute(1, 2, 0), upper=False)
    return (0.5 * (x.square().sum(1) * g).sum(1)).masked_fill_(gone, torch.inf)


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
