"""The truth that the decoder engine is tested against: its forward pass in plain PyTorch, without a cache.

One sequence at a time; linears as in `approxrt.runtime.reference.encoder`, quantised ones with the engine's arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from approxrt.artifact.spec.decoder import PREVIEW_OUT, PREVIEW_PROJECT, SUM_BLOCK, DecoderLayerSpec, DecoderSpec
from approxrt.artifact.spec.formats import GROUP_KINDS
from approxrt.artifact.storage.hadamard import hadamard
from approxrt.runtime.reference.encoder import Reference, kept_keys


class DecoderReference(Reference):
    """A decoder whose weights are converted once."""

    def __init__(
        self, spec: DecoderSpec, tensors: Mapping[str, np.ndarray], dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__(cast(Any, spec), tensors, dtype)
        self.decoder = spec
        self.head = "head.out"
        if spec.tied_embeddings:
            # The embedding table read as a linear of one output a token.
            self.head = "embeddings.word"
            self.linears = {**self.linears, self.head: _table_linear(spec)}
            self.weights[f"{self.head}.bias"] = torch.zeros(spec.vocab_size, dtype=dtype)
            if spec.embedding_kind in GROUP_KINDS:
                self.weights[f"{self.head}.weight"] = self.words
            elif spec.embedding_kind != "f32":
                scale = self._real(tensors[f"{self.head}.scale"])
                self.weights[f"{self.head}.q"] = torch.round(self.words.double() / scale.double()[:, None])

    def next_logits(self, ids: Sequence[int]) -> np.ndarray:
        """[tokens, vocab]: what each token predicts for the one after it."""
        spec = self.decoder
        x = self.words[torch.tensor(list(ids))]
        if spec.positions == "learned":
            x = x + self.weights["embeddings.position.weight"][: len(x)]
        for i, layer in enumerate(spec.layers):
            at = f"layers.{i}"
            if layer.has_attention:
                n = self._pre_norm(f"{at}.attention.norm", x)
                attended = self._causal(f"{at}.attention", n, layer)
                x = x + self._linear(f"{at}.attention.output", attended)
            else:
                x = x + self.weights[f"{at}.attention.output.bias"]
            if layer.has_ffn:
                n = self._pre_norm(f"{at}.ffn.norm", x)
                inner = _act(spec.activation, self._linear(f"{at}.ffn.{'gate' if spec.gated else 'up'}", n))
                if spec.gated:
                    inner = inner * self._linear(f"{at}.ffn.up", n)
                if spec.down_block:
                    blocks = inner.unflatten(-1, (-1, spec.down_block))
                    inner = (blocks @ torch.from_numpy(hadamard(spec.down_block)).to(self.dtype)).flatten(-2)
                x = x + self._linear(f"{at}.ffn.down", inner)
            else:
                x = x + self.weights[f"{at}.ffn.down.bias"]
        return cast(np.ndarray, self.head_logits(self._pre_norm("head.norm", x)).numpy())

    def head_logits(self, h: torch.Tensor) -> torch.Tensor:
        """[tokens, vocab] of h [tokens, hidden], after the last norm; see `HeadPreviewSpec`."""
        logits = self._linear(self.head, h)
        preview = self.decoder.head_preview
        if preview is None:
            return logits
        near = self._linear(PREVIEW_OUT, self._linear(PREVIEW_PROJECT, h))
        refined = near >= near.amax(dim=-1, keepdim=True) - preview.margin
        return torch.where(refined, logits, near)

    def _pre_norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        if self.decoder.norm == "layer":
            x = x - x.mean(dim=-1, keepdim=True)
        normed = x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + self.decoder.norm_eps)
        normed = normed * self.weights[f"{name}.weight"]
        return normed + self.weights[f"{name}.bias"] if self.decoder.norm == "layer" else normed

    def _causal(self, name: str, x: torch.Tensor, layer: DecoderLayerSpec) -> torch.Tensor:
        heads, kv_heads, dim = layer.num_heads, layer.num_kv_heads, layer.head_dim
        q, k, v = (
            self._linear(f"{name}.{part}", x).reshape(len(x), count, dim).transpose(0, 1)
            for part, count in (("query", heads), ("key", kv_heads), ("value", kv_heads))
        )
        if self.decoder.rope is not None:
            angles = torch.arange(len(x))[:, None] * torch.from_numpy(self.decoder.rope.frequencies(dim)).to(self.dtype)
            q, k = _rotate(q, angles), _rotate(k, angles)
        hidden = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        means = None
        if layer.attention_keep:
            kept = self._kept(name, q, k, layer)
            kept[:, : layer.sign_from - 1] = ~hidden[: layer.sign_from - 1]
            hidden = ~kept
            means = k, v
        k, v = (t.repeat_interleave(heads // kv_heads, dim=0) for t in (k, v))
        scores = (q @ k.transpose(1, 2) / math.sqrt(dim)).masked_fill(hidden, -math.inf)
        if means is None or not layer.attention_rest:
            return (torch.softmax(scores, dim=-1) @ v).transpose(0, 1).reshape(len(x), heads * dim)
        # One more key a query, the mean; it weighs as much as the keys that are not kept.
        seen = torch.arange(1, len(x) + 1)
        left = (seen - (~hidden).sum(-1)).to(self.dtype)
        mean_k, mean_v = (_block_means(t).repeat_interleave(heads // kv_heads, dim=0) for t in means)
        more = (q * mean_k).sum(-1) / math.sqrt(dim) + torch.log(left)
        weights = torch.softmax(torch.cat([scores, more[..., None]], dim=-1), dim=-1)
        out = weights[..., :-1] @ v + weights[..., -1:] * mean_v
        return out.transpose(0, 1).reshape(len(x), heads * dim)

    def _kept(self, name: str, q: torch.Tensor, k: torch.Tensor, layer: DecoderLayerSpec) -> torch.Tensor:
        """bool[heads, queries, n] of signs as the layer matches them."""
        first = torch.zeros(k.shape[1], dtype=torch.bool)
        first[0] = True
        if layer.sign_codes:
            turn = self.weights[f"{name}.sign.rotation"]
            k = (k - self.weights[f"{name}.sign.centre"][:, None]) @ turn.transpose(1, 2)
            q = q @ turn.repeat_interleave(layer.num_heads // layer.num_kv_heads, dim=0).transpose(1, 2)
        return kept_keys(q, k, layer.attention_keep, first, causal=True, window=layer.sign_window)


def _block_means(x: torch.Tensor) -> torch.Tensor:
    """At each position the mean of all rows before the last whole block of SUM_BLOCK that it sees; zeros before one."""
    whole = torch.arange(1, x.shape[1] + 1) // SUM_BLOCK * SUM_BLOCK
    sums = torch.nn.functional.pad(x.cumsum(1), (0, 0, 1, 0))
    return sums[:, whole] / whole.clamp(min=1)[:, None]


def _table_linear(spec: DecoderSpec) -> Any:
    from approxrt.artifact.spec.formats import LinearSpec

    return LinearSpec(spec.hidden_size, spec.vocab_size, spec.embedding_kind)


def _rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _act(name: str, x: torch.Tensor) -> torch.Tensor:
    if name == "silu":
        return torch.nn.functional.silu(x)
    if name == "relu":
        return torch.relu(x)
    return torch.nn.functional.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")
