"""Sign-matching attention for a model: calibration that is folded into its weights, and layers that use it.

Signs match well where keys lie around zero and no direction outweighs the others. Per head, with mu the mean key on
calibration texts and R orthogonal,

    q' = R q,   k' = R (k - mu)

leave softmax attention as it is, since q.mu shifts all of a query's scores alike and R keeps products: both are folded
into the weights and biases of query and key (Nagarajan et al. 2020, arXiv 2010.03688, match signs as they are). R is
the identity, or what iterative quantisation (Gong and Lazebnik 2011) finds for the head's queries and keys, whichever
keeps more of the exact attention's weight on the calibration texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from approxrt.runtime.reference.encoder import kept_keys
from approxrt.tasks.examples import Examples
from approxrt.torch_models.encoder import TorchEncoder, make_batch

ITERATIONS = 20
SAMPLES = 4096  # rows of queries and of keys a head that a rotation is fitted to
SCORED = 8  # texts a layer on which rotations are compared


@dataclass(frozen=True)
class SignKind:
    """Say how a layer matches signs; see `approxrt.artifact.spec.encoder.LayerSpec`."""

    keep: int
    sign_from: int
    rest: bool = True


def with_sign_attention(model: TorchEncoder, kinds: Mapping[int, SignKind], always_kept: Sequence[int]) -> None:
    """Give the named layers sign-matching attention, all others the exact one. Weights stay as they are."""
    layers = []
    for i, layer in enumerate(model.spec.layers):
        kind = kinds.get(i) if layer.num_heads else None
        keep, start, rest = (kind.keep, kind.sign_from, kind.rest) if kind else (0, 0, False)
        layers.append(dataclasses.replace(layer, attention_keep=keep, sign_from=start, attention_rest=rest))
    model.spec = dataclasses.replace(model.spec, layers=tuple(layers), always_kept=tuple(sorted(always_kept)))


@dataclass(frozen=True)
class Calibration:
    """Hold what `calibrate` found of a layer, by head: share of the attention's weight that `keep` keys hold.

    before     of signs as they are
    after      of signs once keys are centred and, where that is better, turned
    rotated    heads that are turned
    """

    layer: int
    before: list[float]
    after: list[float]
    rotated: list[int]


def calibrate(model: TorchEncoder, examples: Examples, rows: np.ndarray, keep: int, seed: int = 0) -> list[Calibration]:
    """Fold key means and rotations into query and key of every layer; outputs stay those of exact attention.

    examples, rows   calibration texts; the longer they are, the better
    keep             keys a query is to keep: what rotations are judged by
    """
    found = []
    for i, layer in enumerate(model.spec.layers):
        if not layer.num_heads:
            continue
        texts = _queries_and_keys(model, i, examples, rows)
        generator = np.random.default_rng([seed, i])
        turns, before, after, rotated = [], [], [], []
        means = torch.cat([k for _, k in texts], dim=1).mean(1)
        for head in range(layer.num_heads):
            own = [(q[head], k[head]) for q, k in texts]
            centred = [(q, k - means[head]) for q, k in own]
            turn = fit_rotation(centred, generator)
            eye = torch.eye(layer.head_dim, device=model.device)
            held = [_held_weight(own[:SCORED], centred[:SCORED], r, keep) for r in (eye, turn)]
            better = held[1] > held[0]
            turns.append(turn if better else eye)
            before.append(_held_weight(own[:SCORED], own[:SCORED], eye, keep))
            after.append(max(held))
            rotated += [head] if better else []
        _fold(model, i, means, torch.stack(turns))
        found.append(Calibration(i, before, after, rotated))
    return found


def _queries_and_keys(model: TorchEncoder, i: int, examples: Examples, rows: np.ndarray) -> list[tuple[Tensor, Tensor]]:
    """Return (q, k) f32[heads, tokens, head_dim] of layer `i`, a text at a time."""
    layer, out = model.spec.layers[i], []
    training = model.training
    model.eval()
    with torch.inference_mode():
        for row in rows:
            batch = make_batch([examples.ids[row]], [examples.types[row]], model.device)
            x, keys = model.embed(batch), model.keys(batch)
            for below in range(i):
                x = model.layer(below, x, keys)
            q, k = (
                model.linear(f"layers.{i}.attention.{part}", x)[0]
                .view(-1, layer.num_heads, layer.head_dim)
                .transpose(0, 1)
                for part in ("query", "key")
            )
            out.append((q, k))
    model.train(training)
    return out


def fit_rotation(texts: list[tuple[Tensor, Tensor]], generator: np.random.Generator) -> Tensor:
    """f32[d, d] orthogonal R such that signs of R x lose little of the direction of x, for queries and keys alike."""
    parts = []
    for side in (0, 1):
        x = torch.cat([text[side] for text in texts])
        chosen = torch.from_numpy(generator.permutation(len(x))[:SAMPLES]).to(x.device)
        parts.append(x[chosen] / x.norm(dim=1).mean().clamp_min(1e-12))
    x = torch.cat(parts)
    d = x.shape[1]
    turn = torch.from_numpy(np.linalg.qr(generator.standard_normal((d, d)))[0].astype(np.float32)).to(x.device)
    for _ in range(ITERATIONS):
        # Procrustes: the rotation that brings x nearest to its own signs.
        u, _, vt = torch.linalg.svd(torch.where(x @ turn.T < 0, -1.0, 1.0).T @ x)
        turn = u @ vt
    return turn


def _held_weight(
    exact: list[tuple[Tensor, Tensor]], matched: list[tuple[Tensor, Tensor]], turn: Tensor, keep: int
) -> float:
    """Mean share of the exact attention's weight on keys that sign matching keeps: queries and keys f32[tokens, d]."""
    shares = []
    for (q, k), (a, b) in zip(exact, matched, strict=True):
        weights = torch.softmax(q @ k.T / q.shape[1] ** 0.5, dim=-1)
        kept = kept_keys((a @ turn.T)[None], (b @ turn.T)[None], keep)[0]
        shares.append(float((weights * kept).sum(-1).mean()))
    return float(np.mean(shares))


def _fold(model: TorchEncoder, i: int, means: Tensor, turns: Tensor) -> None:
    """means f32[heads, d], turns f32[heads, d, d]."""
    heads, d = means.shape
    with torch.no_grad():
        for part in ("query", "key"):
            weight = model.weight(f"layers.{i}.attention.{part}.weight")
            bias = model.weight(f"layers.{i}.attention.{part}.bias")
            shifted = bias.view(heads, d) - (means if part == "key" else 0)
            bias.copy_(torch.einsum("hij,hj->hi", turns, shifted).reshape(-1))
            weight.copy_(torch.einsum("hij,hjk->hik", turns, weight.view(heads, d, -1)).reshape(weight.shape))
