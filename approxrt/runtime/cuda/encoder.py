"""An encoder's forward pass as launches of the kernels, on packed tokens of one bucket.

Hidden states, projections and attention are float16 between kernels, products are int8 with int32 sums (float32 where
the artifact is), sums of norms, softmax and pooling float32, the head float32. Everything is allocated by torch: in a
CUDA graph that is the graph's own pool.

A layer of int8 linears is nine launches: query-key-value as one product, attention, quantise, output with the
residual, norm and quantise, up with its activation, quantise, down with the residual, norm and quantise.

Layers that match signs choose tiles of 64 keys, at least as many keys as the layer says (kernels/sign_attention.py):
a CPU chooses single keys, so that their answers differ a little more than by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from approxrt.artifact.spec.encoder import LayerSpec, ModelSpec
from approxrt.artifact.spec.formats import GROUP_KINDS
from approxrt.artifact.storage.groupwise import dequantize_groups, matrix_parts
from approxrt.artifact.storage.mixed_rows import dequantize_mixed
from approxrt.kernels.attention import attention
from approxrt.kernels.embedding import WordTable, embedding
from approxrt.kernels.epilogue import Workspace
from approxrt.kernels.launch import ceil_div, next_power_of_2
from approxrt.kernels.layer_norm import layer_norm
from approxrt.kernels.pooling import pooling
from approxrt.kernels.sign_attention import TILE as SIGN_TILE
from approxrt.kernels.sign_attention import sign_attention
from approxrt.runtime.cuda.linear import Activations, DeviceLinear, apply, build_linear, quantized_like
from approxrt.runtime.cuda.plan import PassViews

HIDDEN = torch.float16


@dataclass
class Norm:
    gamma: torch.Tensor
    beta: torch.Tensor


@dataclass
class Layer:
    """A layer's weights; of a removed block only the mean output (a bias, [1, hidden]) and the norm are left."""

    spec: LayerSpec
    attention_norm: Norm
    ffn_norm: Norm
    qkv: DeviceLinear | None = None
    output: DeviceLinear | None = None
    attention_mean: torch.Tensor | None = None
    up: DeviceLinear | None = None
    down: DeviceLinear | None = None
    ffn_mean: torch.Tensor | None = None

    def first(self) -> DeviceLinear | None:
        """The linear that reads the layer's input, if its first block is there."""
        return self.qkv


class GpuEncoder:
    """Weights on `device`, and the pass over them. Holds no state between calls."""

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, np.ndarray], device: torch.device) -> None:
        self.spec, self.device = spec, device
        self._tensors = tensors
        self.workspace = Workspace(device)
        self.linears: dict[str, DeviceLinear] = {}
        self.words = self._embedding_table()
        self.positions = self._position_table()
        self.types = self._put("embeddings.token_type.weight") if spec.type_vocab_size else None
        self.embedding_norm = self._norm("embeddings.norm")
        self.projection = self._linear("embeddings.projection") if spec.has_projection else None
        kept = spec.always_kept
        self.always_kept = torch.tensor(kept, dtype=torch.int32, device=device) if kept else None
        self.layers = [self._layer(i, layer) for i, layer in enumerate(spec.layers)]
        self.dense = self._linear("head.dense") if spec.head.dense_features is not None else None
        self.out = self._linear("head.out") if spec.labels else None
        self._tensors = {}

    # -- the pass ------------------------------------------------------------

    def hidden(self, batch: PassViews, block_m: int) -> torch.Tensor:
        """Last hidden states float16 [tokens, hidden]; rows that pad the bucket are finite."""
        first = self.layers[0].first()
        x = self._embed(batch, first)
        for i, layer in enumerate(self.layers):
            following = self.layers[i + 1].first() if i + 1 < len(self.layers) else None
            x = self._attention_block(layer, x, batch, block_m)
            x = self._ffn_block(layer, x, following)
        return x.rows

    def pooled(self, batch: PassViews, block_m: int) -> torch.Tensor:
        """float32 [sequences, hidden]."""
        hidden = self.hidden(batch, block_m)
        out = torch.empty(batch.cu_seqlens.shape[0] - 1, self.spec.hidden_size, device=self.device)
        pooling(hidden, batch.cu_seqlens, out, self.spec.head.pooling == "mean")
        return out

    def logits(self, batch: PassViews, block_m: int) -> torch.Tensor:
        """float32 [sequences, labels], or [tokens, labels] of a head that reads every token."""
        assert self.out is not None
        x = self.hidden(batch, block_m).float() if self.spec.per_token else self.pooled(batch, block_m)
        if self.dense is not None:
            y = torch.empty(x.shape[0], self.dense.out_features, device=self.device)
            apply(self.dense, Activations(x), y, self.spec.head.dense_activation)
            x = y
        logits = torch.empty(x.shape[0], self.out.out_features, device=self.device)
        apply(self.out, Activations(x), logits)
        return logits

    def _embed(self, batch: PassViews, first: DeviceLinear | None) -> Activations:
        tokens = batch.ids.shape[0]
        x = self._room(tokens, self.spec.embedding_size, self.projection if self.projection is not None else first)
        norm = self.embedding_norm
        embedding(
            self.words, batch.ids, x.rows,
            positions=batch.positions, position_table=self.positions,
            types=batch.types if self.types is not None else None, type_table=self.types,
            norm=(norm.gamma, norm.beta, self.spec.layer_norm_eps), quantized=x.quantized,
        )  # fmt: skip
        if self.projection is None:
            return x
        y = self._empty(tokens, self.spec.hidden_size)
        apply(self.projection, x, y)
        return Activations(y)

    def _attention_block(self, layer: Layer, x: Activations, batch: PassViews, block_m: int) -> Activations:
        consumer = layer.up
        if layer.qkv is None or layer.output is None:
            return self._normalize(x.rows, layer.attention_norm, layer.attention_mean, consumer)
        tokens, spec = x.rows.shape[0], layer.spec
        inner = spec.num_heads * spec.head_dim
        qkv, attended = self._empty(tokens, 3 * inner), self._empty(tokens, inner)
        apply(layer.qkv, x, qkv)
        self._attend(spec, qkv, attended, batch, block_m)
        y = self._empty(tokens, self.spec.hidden_size)
        apply(layer.output, Activations(attended), y, residual=x.rows)
        return self._normalize(y, layer.attention_norm, None, consumer)

    def _attend(
        self, spec: LayerSpec, qkv: torch.Tensor, attended: torch.Tensor, batch: PassViews, block_m: int
    ) -> None:
        inner, scale = attended.shape[1], 1 / math.sqrt(spec.head_dim)
        q, k, v = qkv.split(inner, dim=1)
        if not spec.attention_keep:
            attention(q, k, v, attended, batch.tiles, block_m, spec.head_dim, scale)
            return
        assert block_m == SIGN_TILE
        rest = None
        if spec.attention_rest:
            means = torch.empty(batch.cu_seqlens.shape[0] - 1, 2 * inner, device=self.device)
            pooling(qkv[:, inner:], batch.cu_seqlens, means, mean=True)
            owners = (
                torch.searchsorted(batch.cu_seqlens, batch.tiles[:, 2].contiguous(), right=True, out_int32=True) - 1
            )
            rest = means, owners
        sign_attention(
            q, k, v, attended, batch.tiles, batch.ids, spec.head_dim, scale,
            ceil_div(spec.attention_keep, SIGN_TILE), next_power_of_2(ceil_div(self.spec.max_positions, SIGN_TILE)),
            dense_below=spec.sign_from, always=self.always_kept, rest=rest,
        )  # fmt: skip

    def _ffn_block(self, layer: Layer, x: Activations, consumer: DeviceLinear | None) -> Activations:
        if layer.up is None or layer.down is None:
            return self._normalize(x.rows, layer.ffn_norm, layer.ffn_mean, consumer)
        inner = self._empty(x.rows.shape[0], layer.up.out_features)
        apply(layer.up, x, inner, self.spec.activation)
        y = self._empty(x.rows.shape[0], self.spec.hidden_size)
        apply(layer.down, Activations(inner), y, residual=x.rows)
        return self._normalize(y, layer.ffn_norm, None, consumer)

    def _normalize(
        self, rows: torch.Tensor, norm: Norm, mean: torch.Tensor | None, consumer: DeviceLinear | None
    ) -> Activations:
        """Norm of rows (+ a removed block's mean output), quantised if its reader wants that."""
        x = self._room(rows.shape[0], rows.shape[1], consumer)
        residual = None if mean is None else mean.expand(rows.shape[0], -1)
        eps = self.spec.layer_norm_eps
        layer_norm(rows, norm.gamma, norm.beta, eps, residual=residual, h=x.rows, quantized=x.quantized)
        return x

    def _room(self, tokens: int, width: int, consumer: DeviceLinear | None) -> Activations:
        rows = self._empty(tokens, width)
        return Activations(rows, quantized_like(rows) if consumer is not None and consumer.quantizes else None)

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=HIDDEN, device=self.device)

    # -- weights -------------------------------------------------------------

    def info(self) -> dict[str, dict[str, Any]]:
        """The kernel and the device bytes of every product."""
        return {name: linear.info() for name, linear in self.linears.items()}

    def _layer(self, i: int, spec: LayerSpec) -> Layer:
        at = f"layers.{i}"
        layer = Layer(spec, self._norm(f"{at}.attention.norm"), self._norm(f"{at}.ffn.norm"))
        if spec.has_attention:
            layer.qkv = self._linear(*(f"{at}.attention.{part}" for part in ("query", "key", "value")))
            layer.output = self._linear(f"{at}.attention.output")
        else:
            layer.attention_mean = self._put(f"{at}.attention.output.bias")[None]
        if spec.has_ffn:
            layer.up, layer.down = self._linear(f"{at}.ffn.up"), self._linear(f"{at}.ffn.down")
        else:
            layer.ffn_mean = self._put(f"{at}.ffn.down.bias")[None]
        return layer

    def _linear(self, *names: str) -> DeviceLinear:
        specs = dict(self.spec.linears())
        linear = build_linear([(name, specs[name]) for name in names], self._tensors, self.device, self.workspace)
        self.linears["+".join(names)] = linear
        return linear

    def _embedding_table(self) -> WordTable:
        kind, width = self.spec.embedding_kind, self.spec.embedding_size
        if kind == "f32":
            return WordTable(self._put("embeddings.word.weight"), width)
        if kind in GROUP_KINDS:
            words = dequantize_groups(matrix_parts("embeddings.word", self._tensors), width)
            return WordTable(torch.tensor(words, device=self.device), width)
        if kind == "s2":
            # There is memory enough: float16 rows would do, too, but these are exact.
            words = dequantize_mixed(self._tensors, width)
            return WordTable(torch.tensor(words, device=self.device), width)
        scale = self._put("embeddings.word.scale")
        if kind == "s8":
            return WordTable(self._put("embeddings.word.q"), width, scale)
        return WordTable(self._put("embeddings.word.q4"), width, scale, self._put("embeddings.word.group_scale"))

    def _position_table(self) -> torch.Tensor:
        if self.spec.position_kind == "f32":
            return self._put("embeddings.position.weight")
        q, scale = self._tensors["embeddings.position.q"], self._tensors["embeddings.position.scale"]
        return torch.tensor(q * scale[:, None], device=self.device)

    def _norm(self, name: str) -> Norm:
        return Norm(self._put(f"{name}.weight"), self._put(f"{name}.bias"))

    def _put(self, name: str) -> torch.Tensor:
        return torch.tensor(self._tensors[name], device=self.device)
