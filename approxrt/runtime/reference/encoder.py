"""The truth that the engine is tested against: an artifact's forward pass in plain PyTorch.

One sequence at a time, no padding, every step written as its formula. f32
linears are computed in `dtype` (float64 by default) from the stored weights.
Quantised linears follow the engine's arithmetic (DESIGN: CPU engine) step by
step, because rounding decides their result:

    m   = max|x_t| over the token's inputs           float32
    s_t = m * (1/127), q = round_half_even(x * (127/m)), clamped to [-127, 127]     float32
    m <= 1e-30: s_t = 0 and q = 0, so the output is the bias
    y   = s_t * scale[o] * sum_i q[t, i] * W[o, i] + bias[o]        sum exact, the rest in `dtype`

W is the int8 weight, or m * q4 of an int4 one. Kinds g4 and g8 read activations with a shift a group of 32 inputs
(csrc/args.h, `approxrt.runtime.reference.groupwise`): x[t, i] ~ s_t 2^k q[t, i], against the weights as they are.

x reaches the quantiser rounded from `dtype` to float32. In float64 it may lie
on the other side of a rounding boundary than the engine's float32 x: one step
of one input, which is the quantisation error itself, not a defect.

This is the one module of the runtime that imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from approxrt.artifact.spec.decoder import RopeSpec
from approxrt.artifact.spec.encoder import HeadSpec, LayerSpec, ModelSpec
from approxrt.artifact.spec.formats import GROUP_KINDS, LinearSpec
from approxrt.artifact.storage.bsr import bsr_to_dense
from approxrt.artifact.storage.groupwise import dequantize_groups, matrix_parts
from approxrt.artifact.storage.int4 import row_integers, tile_integers
from approxrt.artifact.storage.mixed_rows import mixed_integers
from approxrt.runtime.pooling import pool_states
from approxrt.runtime.reference.groupwise import dequantized_tokens
from approxrt.runtime.relative_positions import relative_buckets

QUANTIZE_FLOOR = np.float32(1e-30)


def reference_hidden(
    spec: ModelSpec,
    tensors: Mapping[str, np.ndarray],
    input_ids: Sequence[Sequence[int]],
    type_ids: Sequence[Sequence[int]] | None = None,
    dtype: torch.dtype = torch.float64,
) -> list[np.ndarray]:
    """Last hidden states: for each sequence an array [tokens, hidden]."""
    model = Reference(spec, tensors, dtype)
    return [model.hidden(ids, types).numpy() for ids, types in _pairs(input_ids, type_ids)]


def reference_logits(
    spec: ModelSpec,
    tensors: Mapping[str, np.ndarray],
    input_ids: Sequence[Sequence[int]],
    type_ids: Sequence[Sequence[int]] | None = None,
    dtype: torch.dtype = torch.float64,
) -> np.ndarray:
    """Logits [n, labels] of texts."""
    return np.stack([rows[0] for rows in _logits(spec, tensors, input_ids, type_ids, dtype)])


def reference_token_logits(
    spec: ModelSpec,
    tensors: Mapping[str, np.ndarray],
    input_ids: Sequence[Sequence[int]],
    type_ids: Sequence[Sequence[int]] | None = None,
    dtype: torch.dtype = torch.float64,
) -> list[np.ndarray]:
    """Logits of every token, for a model whose head reads them: for each sequence an array [tokens, labels]."""
    return _logits(spec, tensors, input_ids, type_ids, dtype)


def reference_embeddings(
    spec: ModelSpec,
    tensors: Mapping[str, np.ndarray],
    input_ids: Sequence[Sequence[int]],
    type_ids: Sequence[Sequence[int]] | None = None,
    dtype: torch.dtype = torch.float64,
    normalize: bool = False,
) -> np.ndarray:
    """Pooled hidden states [n, pooled_size], of length 1 if `normalize`."""
    model = Reference(spec, tensors, dtype)
    pooled = torch.stack([model.pooled(ids, types) for ids, types in _pairs(input_ids, type_ids)])
    if normalize:
        pooled = pooled / pooled.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return pooled.numpy()


def quantize_tokens(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x f32[tokens, K] -> (q i8[tokens, K], s_t f32[tokens]) as the engine quantises activations."""
    peak = np.abs(x).max(axis=1, initial=0).astype(np.float32)
    live = peak > QUANTIZE_FLOOR
    inverse = np.where(live, np.float32(127) / np.where(live, peak, np.float32(1)), np.float32(0))
    scale = np.where(live, peak * (np.float32(1) / np.float32(127)), np.float32(0))
    q = np.clip(np.rint(x * inverse[:, None]), -127, 127).astype(np.int8)
    return q, scale


class Reference:
    """A model whose weights are converted once; calls take one sequence of ids."""

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, np.ndarray], dtype: torch.dtype = torch.float64) -> None:
        self.spec, self.dtype = spec, dtype
        self.linears = dict(spec.linears())
        self.weights: dict[str, torch.Tensor] = {}
        for name, array in tensors.items():
            if array.dtype == np.float32:
                self.weights[name] = self._real(array)
        for name, linear in self.linears.items():
            if linear.kind in GROUP_KINDS:
                self.weights[f"{name}.weight"] = self._real(
                    dequantize_groups(matrix_parts(name, tensors), linear.in_features)
                )
            elif linear.kind != "f32":
                q = _dense_integers(name, linear, tensors)
                # float64 holds every sum of products exactly: |sum| <= 127 * 127 * K < 2^53
                self.weights[f"{name}.q"] = torch.from_numpy(q.astype(np.float64))
        if spec.embedding_kind == "s8":
            q, scale = tensors["embeddings.word.q"], tensors["embeddings.word.scale"]
            self.words = self._real(q) * self._real(scale)[:, None]
        elif spec.embedding_kind == "s4":
            q4, m, scale = (tensors[f"embeddings.word.{part}"] for part in ("q4", "group_scale", "scale"))
            self.words = self._real(row_integers(q4, m, spec.embedding_size)) * self._real(scale)[:, None]
        elif spec.embedding_kind == "s2":
            integers = mixed_integers(tensors, spec.embedding_size)
            self.words = self._real(integers) * self._real(tensors["embeddings.word.scale"])[:, None]
        elif spec.embedding_kind in GROUP_KINDS:
            parts = matrix_parts("embeddings.word", tensors)
            self.words = self._real(dequantize_groups(parts, spec.embedding_size))
        else:
            self.words = self.weights["embeddings.word.weight"]
        if "embeddings.position.q" in tensors:
            q, scale = tensors["embeddings.position.q"], tensors["embeddings.position.scale"]
            self.weights["embeddings.position.weight"] = self._real(q) * self._real(scale)[:, None]

    def hidden(self, ids: Sequence[int], types: Sequence[int] | None = None) -> torch.Tensor:
        """[tokens, hidden] in `dtype`."""
        spec = self.spec
        tokens = torch.tensor(list(ids))
        x = self.words[tokens]
        if not spec.rope_theta:
            x = x + self.weights["embeddings.position.weight"][: len(tokens)]
        if spec.type_vocab_size:
            rows = torch.zeros_like(tokens) if types is None else torch.tensor(list(types))
            x = x + self.weights["embeddings.token_type.weight"][rows]
        x = self._norm("embeddings.norm", x)
        if spec.has_projection:
            x = self._linear("embeddings.projection", x)
        for i in spec.steps:
            layer, at = spec.layers[i], f"layers.{i}"
            # What is left of a removed block is a bias, at its last linear's place.
            if layer.has_attention:
                attended = self._attention(f"{at}.attention", x, layer, tokens)
                y = self._linear(f"{at}.attention.output", attended)
            else:
                y = self.weights[f"{at}.attention.output.bias"]
            x = self._norm(f"{at}.attention.norm", x + y)
            if layer.has_ffn:
                inner = _activation(spec.activation, self._linear(f"{at}.ffn.{'gate' if spec.gated else 'up'}", x))
                if spec.gated:
                    inner = inner * self._linear(f"{at}.ffn.up", x)
                y = self._linear(f"{at}.ffn.down", inner)
            else:
                y = self.weights[f"{at}.ffn.down.bias"]
            x = self._norm(f"{at}.ffn.norm", x + y)
        return x

    def pooled(self, ids: Sequence[int], types: Sequence[int] | None = None) -> torch.Tensor:
        """[pooled_size]: the first token's state, the mean over tokens or another pooling, behind the projections."""
        hidden, head = self.hidden(ids, types), self.spec.head
        x = torch.from_numpy(pool_states(hidden.numpy(), head.poolings)).to(self.dtype)
        return projected(head, self.weights, x)

    def logits(self, ids: Sequence[int], types: Sequence[int] | None = None) -> torch.Tensor:
        """[1, labels], or [tokens, labels] where the head reads every token."""
        x = self.hidden(ids, types) if self.spec.per_token else self.pooled(ids, types)[None]
        if self.spec.head.dense_features is not None:
            x = _activation(self.spec.head.dense_activation, self._linear("head.dense", x))
        return self._linear("head.out", x)

    def _attention(self, name: str, x: torch.Tensor, layer: LayerSpec, tokens: torch.Tensor) -> torch.Tensor:
        """softmax(q k^T / sqrt(head_dim) + bias) v by head; [tokens, heads * head_dim]."""
        heads, head_dim = layer.num_heads, layer.head_dim
        q, k, v = (
            self._linear(f"{name}.{part}", x).reshape(len(x), heads, head_dim).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        if self.spec.rope_theta:
            frequencies = torch.from_numpy(RopeSpec(self.spec.rope_theta).frequencies(head_dim))
            # A float32 product, as in transformers.
            angles = (torch.arange(len(x), dtype=torch.float32)[:, None] * frequencies).to(self.dtype)
            q, k = _turned(q, angles), _turned(k, angles)
        if layer.attention_keep and len(x) >= layer.sign_from:
            kept = kept_keys(q.float(), k.float(), layer.attention_keep, self._always_kept(tokens))
            y = sign_attention(q, k, v, 1 / math.sqrt(head_dim), kept, layer.attention_rest)
            return y.transpose(0, 1).reshape(len(x), heads * head_dim)
        bias = torch.zeros((), dtype=self.dtype)
        if self.spec.relative_buckets:
            n = len(x)
            distances = np.arange(n)[None, :] - np.arange(n)[:, None]
            buckets = relative_buckets(distances, self.spec.relative_buckets, self.spec.relative_distance)
            bias = self.weights[f"{name}.relative_bias"][:, torch.from_numpy(buckets)]
        attend = _attention
        if all(self.linears[f"{name}.{part}"].kind != "f32" for part in ("query", "key", "value")):
            attend = _attention_int16
        return attend(q, k, v, 1 / math.sqrt(head_dim), bias).transpose(0, 1).reshape(len(x), heads * head_dim)

    def _always_kept(self, tokens: torch.Tensor) -> torch.Tensor:
        """bool[tokens]: the keys that sign matching never drops."""
        always = torch.isin(tokens, torch.tensor(self.spec.always_kept, dtype=tokens.dtype))
        always[0] = True
        return always

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        bias = self.weights[f"{name}.bias"]
        if self.linears[name].kind == "f32":
            return x @ self.weights[f"{name}.weight"].T + bias
        if self.linears[name].kind in GROUP_KINDS:
            read = self._real(dequantized_tokens(x.to(torch.float32).numpy()))
            return read @ self.weights[f"{name}.weight"].T + bias
        q, s_t = quantize_tokens(x.to(torch.float32).numpy())
        sums = (torch.from_numpy(q.astype(np.float64)) @ self.weights[f"{name}.q"].T).to(self.dtype)
        return self._real(s_t)[:, None] * self.weights[f"{name}.scale"] * sums + bias

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        variance = (centred * centred).mean(dim=-1, keepdim=True)
        normed = centred / torch.sqrt(variance + self.spec.layer_norm_eps)
        return normed * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def _real(self, array: np.ndarray) -> torch.Tensor:
        # A copy: torch warns about the read-only views of a mapped artifact.
        return torch.from_numpy(np.array(array)).to(self.dtype)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, bias: torch.Tensor) -> torch.Tensor:
    """Exact: softmax(scale q k^T + bias) v; all [heads, tokens, head_dim], bias [heads, tokens, tokens] or a number."""
    return torch.softmax(scale * (q @ k.transpose(1, 2)) + bias, dim=-1) @ v


def _attention_int16(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, bias: torch.Tensor
) -> torch.Tensor:
    """The CPU engine's arithmetic beside int8 linears: 16-bit products (csrc/args.h, attention_int16)."""
    limit, width = 32767, -(-q.shape[2] // 16) * 16
    while limit * limit * width > 2**31 - 1:
        limit = limit * 15 // 16
    (q, sq), (k, sk), (v, sv) = _integer_rows(q, limit), _integer_rows(k, limit), _integer_rows(v, 4096)
    scores = scale * sq * sk.transpose(1, 2) * (q @ k.transpose(1, 2)) + bias
    e = torch.exp(scores - scores.amax(dim=2, keepdim=True))
    largest = sv.amax(dim=1, keepdim=True)
    p = torch.round(e * sv.transpose(1, 2) / largest.clamp(min=QUANTIZE_FLOOR) * 4095)
    return (p @ v) * largest / 4095 / e.sum(dim=2, keepdim=True)


def projected(head: HeadSpec, weights: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """[..., pooled_size]: pooled states behind the head's projections, by the artifact's names of their weights."""
    for i, projection in enumerate(head.projections):
        if projection.normalize:
            x = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        weight, bias = (weights[f"head.projections.{i}.{part}"] for part in ("weight", "bias"))
        x = _activation(projection.activation, x @ weight.T + bias)
    return x


def kept_keys(
    q: torch.Tensor,
    k: torch.Tensor,
    keep: int,
    always: torch.Tensor | None = None,
    causal: bool = False,
    window: int = 16,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return which keys sign-matching attention lets each query attend to: bool[..., heads, queries, n].

    Nagarajan et al. 2020 (arXiv 2010.03688). Keys are ranked by m_ij, how many signs of q_i and k_j are equal. Query
    i is at position p = n - queries + i. It keeps, of the keys that are valid for it,

    - all, if there are no more than `keep`;
    - else those of `always`, the one at p, and if causal the `window` last ones up to p; and of the rest the `keep`
      best by m, among equals those of least index (if causal: of greatest).

    q         [..., heads, queries, d]
    k         [..., kv_heads, n, d]; heads are a multiple of kv_heads, and each group of consecutive heads shares one
    always    bool[..., n]
    valid     bool[..., n], false for padding; if causal, keys behind p are not valid either
    A sign is the IEEE sign bit: -0.0 is negative.
    """
    k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
    queries, d, n = q.shape[-2], q.shape[-1], k.shape[-2]
    positions = torch.arange(n - queries, n, device=q.device)[:, None]
    keys = torch.arange(n, device=q.device)[None, :]
    allowed = (keys <= positions) if causal else torch.ones(queries, n, dtype=torch.bool, device=q.device)
    forced = keys == positions
    if causal:
        forced = forced | (keys > positions - window)
    if valid is not None:
        allowed = allowed & valid[..., None, None, :]
    if always is not None:
        forced = forced | always[..., None, None, :]
    rest = allowed & ~forced
    # Integers that no two keys of a query share, exact in the type.
    exact = torch.float32 if (d + 1) * n < 1 << 24 else torch.float64
    a, b = (torch.where(torch.signbit(x), -1.0, 1.0).to(exact) for x in (q, k))
    rank = (a @ b.transpose(-1, -2) + d) / 2 * n + (keys if causal else n - 1 - keys)
    best = torch.where(rest, rank, -1.0).topk(min(keep, n), dim=-1).indices
    chosen = torch.zeros(rank.shape, dtype=torch.bool, device=q.device).scatter_(-1, best, True) & rest
    return torch.where(allowed.sum(-1, keepdim=True) <= keep, allowed, (forced & allowed) | chosen)


def kept_keys_by_tiles(
    q: torch.Tensor,
    k: torch.Tensor,
    keep: int,
    always: torch.Tensor | None = None,
    causal: bool = False,
    tile: int = 64,
    group: int = 8,
) -> torch.Tensor:
    """The same choice by tiles, as a GPU makes it (kernels/sign_attention.py): bool[heads, queries, n].

    Queries and keys of one sequence (as many of both) are cut into tiles from its start. With b_g the sum of the signs
    of the `group` neighbouring keys of group g, a key tile's score for a query tile is the sum over its queries of the
    largest a_i . b_g among the key tile's groups. A query tile keeps, of the key tiles (if causal: up to its own),

    - all, if there are no more than `keep`;
    - else the first, its own, if causal the one before it, those with a key of `always` (bool[n]); and of the rest the
      `keep` best by score, among equals those of least index (if causal: of greatest).

    q [heads, n, d], k [kv_heads, n, d]. If causal, keys behind a query are not kept, though their tile is.
    """
    k = k.repeat_interleave(q.shape[0] // k.shape[0], dim=0)
    heads, n, d = q.shape
    count = -(-n // tile)
    a, b = (torch.where(torch.signbit(x), -1.0, 1.0).to(torch.float64) for x in (q, k))
    padding = (0, 0, 0, count * tile - n)
    a = torch.nn.functional.pad(a, padding).reshape(heads, count, tile, d)
    b = torch.nn.functional.pad(b, padding).reshape(heads, count * tile // group, group, d).sum(2)
    matches = torch.einsum("hiqd,hgd->hiqg", a, b)
    filled = torch.arange(count * tile // group) * group < n
    best = matches.masked_fill(~filled, -math.inf).reshape(heads, count, tile, count, tile // group).amax(4)
    real = (torch.arange(count * tile) < n).reshape(count, tile)
    scores = (best * real[:, :, None]).sum(2)  # [heads, query tiles, key tiles]
    own, other = torch.arange(count)[:, None], torch.arange(count)[None, :]
    allowed = (other <= own) if causal else torch.ones(count, count, dtype=torch.bool)
    forced = (other == own) | (other == 0)
    if causal:
        forced = forced | (other == own - 1)
    if always is not None:
        forced = forced | torch.nn.functional.pad(always, (0, count * tile - n)).reshape(count, tile).any(1)
    free = allowed & ~forced
    order = other if causal else count - 1 - other
    rank = torch.where(free, scores * count + order, -math.inf)
    chosen = torch.zeros(rank.shape, dtype=torch.bool)
    chosen.scatter_(-1, rank.topk(min(keep, count), dim=-1).indices, True)
    tiles = torch.where(allowed.sum(-1, keepdim=True) <= keep, allowed, (forced & allowed) | (chosen & free))
    kept = tiles.repeat_interleave(tile, 1)[:, :n].repeat_interleave(tile, 2)[:, :, :n]
    return kept & (torch.arange(n)[None, :] <= torch.arange(n)[:, None]) if causal else kept


def sign_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    kept: torch.Tensor,
    rest: bool = False,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(scale q k^T) v over the `kept_keys` alone; [..., heads, queries, d]. A query that keeps none: zeros.

    With `rest`, the r keys that a query does not keep stand as r keys like the mean of all: one more score, scale
    q.mean(k) + log r, with the mean value. `valid` (bool[..., n]): what there is to keep; None: all keys.
    """
    k, v = (x.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3) for x in (k, v))
    scores = (scale * (q @ k.transpose(-1, -2))).masked_fill(~kept, -math.inf)
    if rest:
        real = torch.ones(k.shape[-2], dtype=torch.bool, device=k.device) if valid is None else valid
        real = real[..., None, :, None].to(q.dtype)
        mean_k, mean_v = ((x * real).sum(-2, keepdim=True) / real.sum(-2, keepdim=True) for x in (k, v))
        left = real.sum(-2, keepdim=True) - kept.sum(-1, keepdim=True)
        scores = torch.cat([scores, scale * (q @ mean_k.transpose(-1, -2)) + torch.log(left)], dim=-1)
        v = torch.cat([v, mean_v], dim=-2)
    return torch.nan_to_num(torch.softmax(scores, dim=-1)) @ v


def _integer_rows(x: torch.Tensor, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (integers of at most `limit`, scale [..., 1]) of the rows of x; zeros have scale 0."""
    scale = x.abs().amax(dim=-1, keepdim=True) / limit
    return torch.where(scale > 0, torch.round(x / scale.clamp(min=QUANTIZE_FLOOR / limit)), 0.0), scale


def _dense_integers(name: str, linear: LinearSpec, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """[N, K] of a quantised linear, zeros where nothing is stored."""
    if linear.kind == "s8":
        return tensors[f"{name}.q"]
    if linear.kind == "s4":
        return row_integers(tensors[f"{name}.q4"], tensors[f"{name}.group_scale"], linear.in_features)
    indices, indptr = tensors[f"{name}.indices"], tensors[f"{name}.indptr"]
    if linear.kind == "bsr_s4":
        tiles = tile_integers(tensors[f"{name}.tiles4"], tensors[f"{name}.group_scale"], indptr)
    else:
        tiles = tensors[f"{name}.tiles"]
    return bsr_to_dense(tiles, indices, indptr, linear.out_features, linear.in_features)


def _activation(name: str, x: torch.Tensor) -> torch.Tensor:
    if name == "gelu":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if name == "gelu_tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "relu":
        return torch.relu(x)
    if name == "tanh":
        return torch.tanh(x)
    if name == "silu":
        return x * torch.sigmoid(x)
    return x


def _logits(
    spec: ModelSpec,
    tensors: Mapping[str, np.ndarray],
    input_ids: Sequence[Sequence[int]],
    type_ids: Sequence[Sequence[int]] | None,
    dtype: torch.dtype,
) -> list[np.ndarray]:
    model = Reference(spec, tensors, dtype)
    return [model.logits(ids, types).numpy() for ids, types in _pairs(input_ids, type_ids)]


def _turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """[heads, tokens, head_dim] with element c of the first half and c of the second turned by angles [tokens, c]."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _pairs(
    input_ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]] | None
) -> list[tuple[Sequence[int], Sequence[int] | None]]:
    if type_ids is None:
        return [(ids, None) for ids in input_ids]
    return list(zip(input_ids, type_ids, strict=True))
