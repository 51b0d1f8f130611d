"""A decoder's step as launches of the kernels, on packed tokens of one bucket.

The residual stream is float32; projections, keys, values and attention are float16 between kernels, products int8 with
int32 sums, as in `gpu_encoder`. A layer of int8 linears on a decode step is ten launches: norm and quantise,
query-key-value, rotary positions with the cache's new rows, attention and its parts brought together, quantise, output
with the residual, norm and quantise, gate and up, gate times up and quantise, down with the residual.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from approxrt.artifact.spec.decoder import DecoderLayerSpec, DecoderSpec
from approxrt.artifact.spec.formats import GROUP_KINDS, LinearSpec
from approxrt.artifact.storage.groupwise import dequantize_groups, matrix_parts
from approxrt.kernels.attention import attention
from approxrt.kernels.cached_attention import cached_attention
from approxrt.kernels.embedding import WordTable, embedding
from approxrt.kernels.epilogue import Workspace
from approxrt.kernels.gated import gated
from approxrt.kernels.layer_norm import layer_norm
from approxrt.kernels.rope import rope
from approxrt.runtime.cuda.decode_plan import StepBucket, StepViews
from approxrt.runtime.cuda.linear import Activations, DeviceLinear, apply, build_linear, quantized_like

HALF = torch.float16


@dataclass
class DecoderLayer:
    """A layer's weights; a removed block has left its mean output, [1, hidden], and nothing else."""

    spec: DecoderLayerSpec
    attention_norm: tuple[torch.Tensor, torch.Tensor | None] | None = None
    qkv: DeviceLinear | None = None
    output: DeviceLinear | None = None
    attention_mean: torch.Tensor | None = None
    ffn_norm: tuple[torch.Tensor, torch.Tensor | None] | None = None
    up: DeviceLinear | None = None
    down: DeviceLinear | None = None
    ffn_mean: torch.Tensor | None = None


class GpuDecoder:
    """Weights on `device`, and steps over them; keys and values of all sequences in `caches`, one tensor a layer."""

    def __init__(
        self, spec: DecoderSpec, tensors: Mapping[str, np.ndarray], device: torch.device, cache_rows: int
    ) -> None:
        self.spec, self.device = spec, device
        self._tensors = tensors
        self.workspace = Workspace(device)
        self.linears: dict[str, DeviceLinear] = {}
        self.words = self._embedding_table()
        self.positions = self._put("embeddings.position.weight") if spec.positions == "learned" else None
        self.layers = [self._layer(i, layer) for i, layer in enumerate(spec.layers)]
        self.norm = self._norm("head.norm")
        self.head = self._head()
        dims = {layer.head_dim for layer in spec.layers if layer.has_attention}
        self.turns = {dim: self._tables(dim) for dim in dims} if spec.rope is not None else {}
        self.caches = [
            torch.zeros(cache_rows, 2 * layer.num_kv_heads * layer.head_dim, dtype=HALF, device=device)
            if layer.has_attention
            else None
            for layer in spec.layers
        ]
        self._tensors = {}

    def logits(self, step: StepViews, bucket: StepBucket, block_m: int) -> torch.Tensor:
        """float32 [outputs, vocab] of the rows that the step names; keys and values are in the cache afterwards."""
        z = torch.empty(bucket.tokens, self.spec.hidden_size, device=self.device)
        with_positions = self.positions is not None
        embedding(
            self.words, step.ids, z,
            positions=step.positions if with_positions else None, position_table=self.positions,
        )  # fmt: skip
        for i, layer in enumerate(self.layers):
            z = self._attention_block(layer, self.caches[i], z, step, bucket, block_m)
            z = self._ffn_block(layer, z)
        rows = torch.index_select(z, 0, step.outputs)
        x = self._normalize(rows, self.norm, self.head)
        logits = torch.empty(bucket.outputs, self.spec.vocab_size, device=self.device)
        apply(self.head, x, logits)
        return logits

    def _attention_block(
        self,
        layer: DecoderLayer,
        cache: torch.Tensor | None,
        z: torch.Tensor,
        step: StepViews,
        bucket: StepBucket,
        block_m: int,
    ) -> torch.Tensor:
        if layer.qkv is None or layer.output is None or layer.attention_norm is None or cache is None:
            return z + layer.attention_mean
        spec = layer.spec
        heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        scale = 1 / math.sqrt(dim)
        qkv = self._half(bucket.tokens, (heads + 2 * kv_heads) * dim)
        apply(layer.qkv, self._normalize(z, layer.attention_norm, layer.qkv), qkv)
        rope(qkv, cache, step.positions, step.slots, heads, kv_heads, dim, self.turns.get(dim))
        attended = self._half(bucket.tokens, heads * dim)
        q = qkv[:, : heads * dim]
        if bucket.parts:
            cached_attention(q, cache, attended, step.work, bucket.parts, heads, kv_heads, dim, scale)
        else:
            k, v = cache.split(kv_heads * dim, dim=1)
            attention(q, k, v, attended, step.work, block_m, dim, scale, causal=True)
        out = torch.empty_like(z)
        apply(layer.output, Activations(attended), out, residual=z)
        return out

    def _ffn_block(self, layer: DecoderLayer, z: torch.Tensor) -> torch.Tensor:
        if layer.up is None or layer.down is None or layer.ffn_norm is None:
            return z + layer.ffn_mean
        x = self._normalize(z, layer.ffn_norm, layer.up)
        inner = self._half(z.shape[0], layer.up.out_features)
        if self.spec.gated or self.spec.down_block:
            apply(layer.up, x, inner)
            rows = self._half(z.shape[0], layer.spec.intermediate_size)
            wanted = layer.down.quantizes
            y = Activations(rows, quantized_like(rows) if wanted else None)
            gated(
                inner, self.spec.activation, None if wanted else rows, y.quantized,
                gate=self.spec.gated, hadamard=self.spec.down_block,
            )  # fmt: skip
        else:
            apply(layer.up, x, inner, self.spec.activation)
            y = Activations(inner)
        out = torch.empty_like(z)
        apply(layer.down, y, out, residual=z)
        return out

    def _normalize(
        self, z: torch.Tensor, norm: tuple[torch.Tensor, torch.Tensor | None], consumer: DeviceLinear
    ) -> Activations:
        """Return rows in the form that the consumer reads: int8, or float32 rows."""
        gamma, beta = norm
        if consumer.quantizes:
            x = Activations(z, quantized_like(z))
            layer_norm(z, gamma, beta, self.spec.norm_eps, quantized=x.quantized)
            return x
        rows = torch.empty_like(z)
        layer_norm(z, gamma, beta, self.spec.norm_eps, h=rows)
        return Activations(rows)

    def _half(self, *shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=HALF, device=self.device)

    # -- weights -------------------------------------------------------------

    def info(self) -> dict[str, dict[str, Any]]:
        """The kernel and the device bytes of every product."""
        return {name: linear.info() for name, linear in self.linears.items()}

    def _layer(self, i: int, spec: DecoderLayerSpec) -> DecoderLayer:
        at, layer = f"layers.{i}", DecoderLayer(spec)
        if spec.has_attention:
            layer.attention_norm = self._norm(f"{at}.attention.norm")
            layer.qkv = self._linear(*(f"{at}.attention.{part}" for part in ("query", "key", "value")))
            layer.output = self._linear(f"{at}.attention.output")
        else:
            layer.attention_mean = self._put(f"{at}.attention.output.bias")[None]
        if spec.has_ffn:
            layer.ffn_norm = self._norm(f"{at}.ffn.norm")
            layer.up = self._linear(*(f"{at}.ffn.{part}" for part in (("gate", "up") if self.spec.gated else ("up",))))
            layer.down = self._linear(f"{at}.ffn.down")
        else:
            layer.ffn_mean = self._put(f"{at}.ffn.down.bias")[None]
        return layer

    def _linear(self, *names: str) -> DeviceLinear:
        specs = dict(self.spec.linears())
        return self._build("+".join(names), [(name, specs[name]) for name in names])

    def _head(self) -> DeviceLinear:
        if not self.spec.tied_embeddings:
            return self._linear("head.out")
        # The embedding table read as a linear of one output a token.
        table = LinearSpec(self.spec.hidden_size, self.spec.vocab_size, self.spec.embedding_kind)
        return self._build("head", [("embeddings.word", table)])

    def _build(self, name: str, parts: list[tuple[str, LinearSpec]]) -> DeviceLinear:
        linear = build_linear(parts, self._tensors, self.device, self.workspace, keep_int4=True)
        self.linears[name] = linear
        return linear

    def _embedding_table(self) -> WordTable:
        kind, width = self.spec.embedding_kind, self.spec.hidden_size
        if kind == "f32":
            return WordTable(self._put("embeddings.word.weight"), width)
        if kind in GROUP_KINDS:
            words = dequantize_groups(matrix_parts("embeddings.word", self._tensors), width)
            return WordTable(torch.tensor(words, device=self.device), width)
        scale = self._put("embeddings.word.scale")
        if kind == "s8":
            return WordTable(self._put("embeddings.word.q"), width, scale)
        return WordTable(self._put("embeddings.word.q4"), width, scale, self._put("embeddings.word.group_scale"))

    def _tables(self, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin f32 [positions, dim / 2] of angles in float64."""
        assert self.spec.rope is not None
        angles = np.arange(self.spec.max_positions)[:, None] * self.spec.rope.frequencies(dim).astype(np.float64)
        cos, sin = (torch.tensor(f(angles).astype(np.float32), device=self.device) for f in (np.cos, np.sin))
        return cos, sin

    def _norm(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self._put(f"{name}.weight"), self._put(f"{name}.bias") if self.spec.norm == "layer" else None

    def _put(self, name: str) -> torch.Tensor:
        return torch.tensor(self._tensors[name], device=self.device)
