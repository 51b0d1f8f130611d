"""The schema of a decoder: a pre-norm transformer that predicts the next token (GPT-2, Llama, Qwen2).

    x = word[id] (+ position[p])
    x = x + output(attention(norm(x)))          causal, num_kv_heads keys and values for num_heads queries
    x = x + down(H(act(gate(n)) * up(n)))       n = norm(x); without a gate: down(H(act(up(n))))
    logits = head(norm(x))

H is the identity, or where `down_block` is not 0 a Hadamard matrix over its root (Sylvester's construction), applied to
every block of so many elements.

Linear kinds and their tensors are those of `approxrt.artifact.spec.encoder`. The embedding table is also the head's
matrix where `tied_embeddings` says so: it then has no tensors of its own, int4 tables keep group scales that a linear
can have, and the head has no bias.

A layer's attention is removed where num_heads is 0, its FFN where intermediate_size is 0. What a removed block leaves
is its mean output b, `layers.i.attention.output.bias` or `layers.i.ffn.down.bias`: x = x + b. Its norm is not stored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.artifact.spec.formats import (
    MAX_GROUP_SCALE,
    MAX_ROW_GROUP_SCALE,
    LinearKind,
    LinearSpec,
    TableKind,
    embedding_tensors,
    linear_tensors,
)

TASK = "generation"
NORMS = ("layer", "rms")
POSITIONS = ("learned", "rope")
ROPE_SCALINGS = ("none", "linear", "llama3")
DOWN_BLOCKS = (0, 16, 32, 64, 128)
DECODER_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
SUM_BLOCK = 64  # tokens; csrc/decoder_args.h, kSumBlock
DENSE_DECODER_ATTENTION: dict[str, Any] = {
    "attention_keep": 0, "sign_from": 0, "sign_window": 0, "sign_codes": 0, "attention_rest": False
}  # fmt: skip

PREVIEW_PROJECT, PREVIEW_OUT = "head.preview.project", "head.preview.out"

_PARTS = {
    "attention.query": "query",
    "attention.key": "key",
    "attention.value": "value",
    "attention.output": "attention_output",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
}


@dataclass(frozen=True)
class DecoderLayerSpec:
    """One pre-norm layer. `num_heads` is a multiple of `num_kv_heads`; no heads: the block is removed.

    `attention_keep` over 0: a query that sees at least `sign_from` keys matches signs (see
    `approxrt.runtime.reference.encoder.kept_keys`): it attends to its `attention_keep` best keys, the first and the
    last `sign_window`. With `attention_rest` the keys that are not kept stand as so many keys like the mean of those
    before the last whole block of SUM_BLOCK that the query sees.
    `sign_codes` over 0: not the signs of q and k are matched but those of R q and R (k - m) of the key-value head, with
    R, `layers.i.attention.sign.rotation` [num_kv_heads, sign_codes, head_dim] and m, `layers.i.attention.sign.centre`
    [num_kv_heads, head_dim]. Keys are what they are after rotary positions.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    query: LinearKind = "f32"
    key: LinearKind = "f32"
    value: LinearKind = "f32"
    attention_output: LinearKind = "f32"
    ffn_gate: LinearKind = "f32"
    ffn_up: LinearKind = "f32"
    ffn_down: LinearKind = "f32"
    attention_keep: int = 0
    sign_from: int = 0
    sign_window: int = 0
    sign_codes: int = 0
    attention_rest: bool = False

    def with_sizes(self, num_heads: int, num_kv_heads: int, intermediate_size: int) -> DecoderLayerSpec:
        """Return the layer with other sizes; what a removed block had besides is reset."""
        changes: dict[str, Any] = {
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "intermediate_size": intermediate_size,
        }
        if not num_heads:
            changes |= dict.fromkeys(("query", "key", "value", "attention_output"), "f32")
        if not intermediate_size:
            changes |= dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down"), "f32")
        return dataclasses.replace(self, **changes)

    @property
    def has_attention(self) -> bool:
        return self.num_heads != 0

    @property
    def has_ffn(self) -> bool:
        return self.intermediate_size != 0


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): halves (i, i + head_dim / 2) turn by position * frequency i.

    frequency i = theta^(-2i / head_dim), then
      linear   divided by `factor` (Chen et al. 2023, arXiv 2306.15595)
      llama3   divided by `factor` where the wavelength is over original_positions / low_freq_factor, kept where it is
               under original_positions / high_freq_factor, blended in between (Llama 3.1)
    Before that each is divided by its own of `frequency_factors` [head_dim / 2], if there are any: .gguf files have
    Llama 3.1's scaling in this form.
    """

    theta: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192
    frequency_factors: tuple[float, ...] = ()

    def frequencies(self, head_dim: int) -> np.ndarray:
        """f32[head_dim / 2] in radians a position, rounded as transformers rounds them."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        plain = (np.float32(1) / np.power(np.float32(self.theta), exponents)).astype(np.float32)
        if self.frequency_factors:
            plain = plain / np.asarray(self.frequency_factors, np.float32)
        if self.scaling == "linear":
            return (plain / np.float32(self.factor)).astype(np.float32)
        if self.scaling == "none":
            return plain
        wavelength = 2 * math.pi / plain.astype(np.float64)
        low, high = self.original_positions / self.low_freq_factor, self.original_positions / self.high_freq_factor
        smooth = (self.original_positions / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        blended = (1 - smooth) * plain / self.factor + smooth * plain
        return np.where(wavelength > low, plain / self.factor, np.where(wavelength < high, plain, blended)).astype(
            np.float32
        )


@dataclass(frozen=True)
class HeadPreviewSpec:
    """A head in two steps (after SVD-softmax, Shim et al. 2017), over a tied embedding table E of kind g8:

        logits = out(project(h)), linears hidden -> width -> vocab, `head.preview.project` and `head.preview.out`;
        words whose logit is at least the largest less `margin` get the head's, E h, instead

    A token at a time, in float32: the comparison is of logits as they are computed with the largest of them - margin.
    """

    width: int
    margin: float
    project: LinearKind = "g8"
    out: LinearKind = "g4"


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder with its head. Sizes in elements; `max_positions` in tokens.

    eos_token_ids   a text ends with any of these
    chat_template   the Jinja template of a conversation, "" where there is none
    special_tokens  names that the template may use: "bos_token", "eos_token", ... -> text
    head_preview    how the head is previewed; None: it is not
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    max_positions: int
    norm: str
    norm_eps: float
    activation: str
    gated: bool
    positions: str
    layers: tuple[DecoderLayerSpec, ...]
    rope: RopeSpec | None = None
    tied_embeddings: bool = True
    down_block: int = 0
    embedding_kind: TableKind = "f32"
    head_kind: LinearKind = "f32"
    eos_token_ids: tuple[int, ...] = ()
    chat_template: str = ""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    head_preview: HeadPreviewSpec | None = None
    task_type: Literal["generation"] = "generation"
    extra: Mapping[str, Any] = field(default_factory=dict)

    # What encoders may have and decoders have not.
    relative_buckets: ClassVar[int] = 0

    # What is asked of both kinds of spec.

    @property
    def labels(self) -> tuple[str, ...]:
        return ()

    @property
    def inputs(self) -> str:
        return "single"

    @property
    def max_length(self) -> int:
        return self.max_positions

    @property
    def embedding_size(self) -> int:
        return self.hidden_size

    @property
    def embedding_group_scale(self) -> int:
        """The largest group scale of an int4 embedding table: a table that is the head's matrix, too, has a
        linear's."""
        return MAX_GROUP_SCALE if self.tied_embeddings else MAX_ROW_GROUP_SCALE

    def linears(self) -> Iterator[tuple[str, LinearSpec]]:
        """Every linear with tensors of its own as (name, spec), in execution order; removed blocks have none."""
        for i, layer in enumerate(self.layers):
            if layer.has_attention:
                wide, narrow = layer.num_heads * layer.head_dim, layer.num_kv_heads * layer.head_dim
                yield f"layers.{i}.attention.query", LinearSpec(self.hidden_size, wide, layer.query)
                yield f"layers.{i}.attention.key", LinearSpec(self.hidden_size, narrow, layer.key)
                yield f"layers.{i}.attention.value", LinearSpec(self.hidden_size, narrow, layer.value)
                yield f"layers.{i}.attention.output", LinearSpec(wide, self.hidden_size, layer.attention_output)
            if layer.has_ffn:
                if self.gated:
                    yield f"layers.{i}.ffn.gate", LinearSpec(self.hidden_size, layer.intermediate_size, layer.ffn_gate)
                yield f"layers.{i}.ffn.up", LinearSpec(self.hidden_size, layer.intermediate_size, layer.ffn_up)
                yield f"layers.{i}.ffn.down", LinearSpec(layer.intermediate_size, self.hidden_size, layer.ffn_down)
        if not self.tied_embeddings:
            yield "head.out", LinearSpec(self.hidden_size, self.vocab_size, self.head_kind)
        if (preview := self.head_preview) is not None:
            yield PREVIEW_PROJECT, LinearSpec(self.hidden_size, preview.width, preview.project)
            yield PREVIEW_OUT, LinearSpec(preview.width, self.vocab_size, preview.out)

    def stays_f32(self, name: str) -> bool:
        """Tell whether a conversion leaves the linear in float32: none of a decoder's."""
        return False

    def removed_biases(self) -> Iterator[tuple[str, str]]:
        """Return (block, its bias) of every removed block."""
        for i, layer in enumerate(self.layers):
            if not layer.has_attention:
                yield f"layers.{i}.attention", f"layers.{i}.attention.output.bias"
            if not layer.has_ffn:
                yield f"layers.{i}.ffn", f"layers.{i}.ffn.down.bias"

    def with_linear_kinds(self, kinds: Mapping[str, LinearKind]) -> DecoderSpec:
        """A copy in which the named linears (names as in `linears()`) have the given kinds."""
        unknown = sorted(set(kinds) - {name for name, _ in self.linears()})
        if unknown:
            raise KeyError(f"no such linears: {unknown}")
        layers = []
        for i, layer in enumerate(self.layers):
            changes: dict[str, Any] = {
                attr: kinds[f"layers.{i}.{part}"] for part, attr in _PARTS.items() if f"layers.{i}.{part}" in kinds
            }
            layers.append(dataclasses.replace(layer, **changes))
        preview = self.head_preview
        if preview is not None:
            preview = dataclasses.replace(
                preview,
                project=kinds.get(PREVIEW_PROJECT, preview.project),
                out=kinds.get(PREVIEW_OUT, preview.out),
            )
        head_kind = kinds.get("head.out", self.head_kind)
        return dataclasses.replace(self, layers=tuple(layers), head_kind=head_kind, head_preview=preview)

    def dense_tensors(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Return (name, dtype, shape) of every tensor whose shape the spec alone decides; see
        `ModelSpec.dense_tensors`."""
        h = self.hidden_size
        yield from embedding_tensors(self.embedding_kind, self.vocab_size, h)
        if self.positions == "learned":
            yield "embeddings.position.weight", "F32", (self.max_positions, h)
        for i, layer in enumerate(self.layers):
            for part, there in (("attention", layer.has_attention), ("ffn", layer.has_ffn)):
                if there:
                    yield from self._norm(f"layers.{i}.{part}.norm")
        yield from self._norm("head.norm")
        for i, layer in enumerate(self.layers):
            if layer.sign_codes:
                at, heads = f"layers.{i}.attention.sign", layer.num_kv_heads
                yield f"{at}.rotation", "F32", (heads, layer.sign_codes, layer.head_dim)
                yield f"{at}.centre", "F32", (heads, layer.head_dim)
        for _, bias in self.removed_biases():
            yield bias, "F32", (h,)
        for name, linear in self.linears():
            yield from linear_tensors(name, linear)

    def _norm(self, name: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        yield f"{name}.weight", "F32", (self.hidden_size,)
        if self.norm == "layer":
            yield f"{name}.bias", "F32", (self.hidden_size,)

    # -- JSON ---------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The `model` object of config.json."""
        data = dataclasses.asdict(self)
        data["layers"] = [dataclasses.asdict(layer) for layer in self.layers]
        data["eos_token_ids"] = list(self.eos_token_ids)
        data["special_tokens"] = dict(self.special_tokens)
        data["extra"] = dict(self.extra)
        if self.head_preview is None:
            # So that releases which know of no preview read what has none.
            del data["head_preview"]
        if self.rope is not None and not self.rope.frequency_factors:
            del data["rope"]["frequency_factors"]
        return data


AnySpec = ModelSpec | DecoderSpec
