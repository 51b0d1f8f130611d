"""A decoder in PyTorch, batched and differentiable, whose linears somebody else may compute: for statistics of their
inputs, for rounding one after the other, for training.

It starts from an all-f32 spec. Sequences of a batch have the same length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.nn import functional

from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.artifact.storage.hadamard import hadamard
from approxrt.torch_models.device import resolve_device

# (name, inputs [..., K]) -> outputs [..., N]
Linear = Callable[[str, torch.Tensor], torch.Tensor]


class TorchDecoder:
    """`weights` are float32 tensors under the artifact's names, on `device`."""

    def __init__(
        self, spec: DecoderSpec, tensors: Mapping[str, np.ndarray], device: str | torch.device = "cpu"
    ) -> None:
        self.spec, self.device = spec, resolve_device(device)
        self.weights = {name: self._held(np.array(array, np.float32)) for name, array in tensors.items()}
        # Both are the same in every pass; sent to the device once.
        self._hadamard = self._held(hadamard(spec.down_block)).float() if spec.down_block else None
        self._frequencies: dict[int, torch.Tensor] = {}
        if spec.tied_embeddings:
            self.weights["head.out.weight"] = self.weights["embeddings.word.weight"]
            self.weights["head.out.bias"] = torch.zeros(spec.vocab_size, device=self.device)

    def _held(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The plain product."""
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """ids i64[batch, tokens] -> [batch, tokens, hidden]."""
        x = self.weights["embeddings.word.weight"][ids]
        if self.spec.positions == "learned":
            x = x + self.weights["embeddings.position.weight"][: ids.shape[1]]
        return x

    def layer(self, i: int, x: torch.Tensor, linear: Linear | None = None) -> torch.Tensor:
        """Layer `i`; its linears are called in the order of execution."""
        return self.ffn_block(i, self.attention_block(i, x, linear), linear)

    def attention_block(self, i: int, x: torch.Tensor, linear: Linear | None = None) -> torch.Tensor:
        """x + attention(norm(x)); [batch, tokens, hidden]."""
        at = f"layers.{i}.attention.output"
        if not self.spec.layers[i].has_attention:
            return x + self.weights[f"{at}.bias"]
        return x + (linear or self.linear)(at, self.context(i, x, linear))

    def ffn_block(self, i: int, x: torch.Tensor, linear: Linear | None = None) -> torch.Tensor:
        """x + ffn(norm(x)); [batch, tokens, hidden]."""
        at = f"layers.{i}.ffn.down"
        if not self.spec.layers[i].has_ffn:
            return x + self.weights[f"{at}.bias"]
        return x + (linear or self.linear)(at, self.channels(i, x, linear))

    def context(self, i: int, x: torch.Tensor, linear: Linear | None = None) -> torch.Tensor:
        """[batch, tokens, heads * head_dim]: what the output projection of layer `i` reads."""
        batch, tokens, _ = x.shape
        q, k, v = self.queries_keys_values(i, x, linear)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return attended.transpose(1, 2).reshape(batch, tokens, -1)

    def channels(self, i: int, x: torch.Tensor, linear: Linear | None = None) -> torch.Tensor:
        """[batch, tokens, intermediate_size]: what `down` of layer `i` reads."""
        run, spec, at = linear or self.linear, self.spec, f"layers.{i}"
        n = self.norm(f"{at}.ffn.norm", x)
        inner = _act(spec.activation, run(f"{at}.ffn.{'gate' if spec.gated else 'up'}", n))
        if spec.gated:
            inner = inner * run(f"{at}.ffn.up", n)
        if self._hadamard is not None:
            inner = (inner.unflatten(-1, (-1, spec.down_block)) @ self._hadamard).flatten(-2)
        return inner

    def queries_keys_values(
        self, i: int, x: torch.Tensor, linear: Linear | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[batch, heads or kv_heads, tokens, head_dim] that layer `i` attends with, after rotary positions."""
        run, layer, at = linear or self.linear, self.spec.layers[i], f"layers.{i}.attention"
        n = self.norm(f"{at}.norm", x)
        batch, tokens, _ = x.shape
        q, k, v = (
            run(f"{at}.{part}", n).reshape(batch, tokens, heads, layer.head_dim).transpose(1, 2)
            for part, heads in (("query", layer.num_heads), ("key", layer.num_kv_heads), ("value", layer.num_kv_heads))
        )
        if self.spec.rope is not None:
            dim = layer.head_dim
            if dim not in self._frequencies:
                self._frequencies[dim] = self._held(self.spec.rope.frequencies(dim))
            angles = torch.arange(tokens, device=self.device)[:, None] * self._frequencies[dim]
            q, k = _rotate(q, angles), _rotate(k, angles)
        return q, k, v

    def head(self, x: torch.Tensor, linear: Linear | None = None) -> torch.Tensor:
        """Logits of every token."""
        return (linear or self.linear)("head.out", self.norm("head.norm", x))

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The spec's kind of norm."""
        weight = self.weights[f"{name}.weight"]
        if self.spec.norm == "layer":
            return functional.layer_norm(x, weight.shape, weight, self.weights[f"{name}.bias"], self.spec.norm_eps)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.spec.norm_eps) * weight


def _rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _act(name: str, x: torch.Tensor) -> torch.Tensor:
    if name == "silu":
        return functional.silu(x)
    if name == "relu":
        return functional.relu(x)
    return functional.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")
