"""The artifact's schema: what `config.json` says and which tensors must exist.

A `ModelSpec` is plain, frozen data. It knows how to turn itself into the JSON of
`config.json` and back, and which tensors (name, dtype, shape) a model of that
spec has. It holds no weights and runs nothing.

A layer's attention block is removed where num_heads is 0, its FFN block where
intermediate_size is 0. What a removed block leaves is its residual path, its norm
and its mean output b: x = norm(x + b). Its one tensor beside the norm's is b, at
the place of its last linear's bias: `layers.i.attention.output.bias` or
`layers.i.ffn.down.bias`, f32[hidden]. The kinds of its linears are f32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from approxrt.artifact.spec.formats import (
    MAX_ROW_GROUP_SCALE,
    EmbeddingKind,
    LinearKind,
    LinearSpec,
    PositionKind,
    embedding_tensors,
    linear_tensors,
)

FORMAT_NAME = "approxrt"
FORMAT_VERSION = 1


ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "tanh", "identity")
FFN_ACTIVATIONS = ("gelu", "gelu_tanh", "relu")
GATED_ACTIVATIONS = (*FFN_ACTIVATIONS, "silu")
POOLINGS = ("cls", "mean", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens")
# What an answer's outputs go through. "" in `HeadSpec.activation_fn`: the checkpoint names none.
OUTPUT_ACTIVATIONS = ("", "identity", "sigmoid", "softmax", "tanh")
# "" in `HeadSpec.function_to_apply`: an artifact of before the field, whose task type decides.
OUTPUT_FUNCTIONS = ("", "none", "sigmoid", "softmax")
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
TaskType = Literal[
    "classification", "regression", "multi_label", "embedding", "token_classification", "question_answering"
]
TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)
# Tasks whose head reads every token, and what their models take.
PER_TOKEN: Mapping[str, str] = {"token_classification": "single", "question_answering": "pair"}
QA_OUTPUTS = ("start", "end")
INPUTS = ("single", "pair", "any")

# Limits that keep a hostile config from asking for absurd memory before any tensor is looked at.
MAX_DIM = 1 << 17
MAX_VOCAB = 1 << 22
MAX_LAYERS = 256
MAX_LABELS = 1 << 16
MAX_ALWAYS_KEPT = 64
MAX_POOLINGS = 8
MAX_PROJECTIONS = 8
MAX_RELATIVE_BUCKETS = 1 << 10
MAX_RELATIVE_BIASES = 1 << 24  # floats of all layers' tables, once they say something of every distance
MAX_ROPE_ELEMENTS = 1 << 24  # max_positions times a head's elements
MAX_SIGN_DIM = 248  # csrc/args.h: a head's sign matches are counted in eight bits


@dataclass(frozen=True)
class LayerSpec:
    """One post-norm transformer layer.

    `num_heads * head_dim` outputs of query, key and value; it may be less than
    hidden_size once heads are pruned. Likewise `intermediate_size`. No heads:
    the attention block is removed; an intermediate size of 0: the FFN block is.

    `attention_keep` over 0: sequences of at least `sign_from` tokens are attended by
    sign matching (`approxrt.runtime.reference.encoder.kept_keys`), where a query attends to
    the `attention_keep` keys that match its signs best, the first token, itself, and
    the model's `always_kept` tokens. Shorter ones are attended in full. With
    `attention_rest` the keys that are not kept stand as so many keys like the mean.
    """

    num_heads: int
    head_dim: int
    intermediate_size: int
    query: LinearKind = "f32"
    key: LinearKind = "f32"
    value: LinearKind = "f32"
    attention_output: LinearKind = "f32"
    ffn_up: LinearKind = "f32"
    ffn_down: LinearKind = "f32"
    attention_keep: int = 0
    attention_rest: bool = False
    sign_from: int = 0
    ffn_gate: LinearKind = "f32"

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values: as many as of queries."""
        return self.num_heads

    def with_sizes(self, num_heads: int, num_kv_heads: int, intermediate_size: int) -> LayerSpec:
        """Return the layer with other sizes; what a removed block had besides is reset."""
        changes: dict[str, Any] = {"num_heads": num_heads, "intermediate_size": intermediate_size}
        if not num_heads:
            changes |= dict.fromkeys(("query", "key", "value", "attention_output"), "f32") | DENSE_ATTENTION
        if not intermediate_size:
            changes |= dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down"), "f32")
        return dataclasses.replace(self, **changes)

    @property
    def has_attention(self) -> bool:
        return self.num_heads != 0

    @property
    def has_ffn(self) -> bool:
        return self.intermediate_size != 0


# What a layer that does not match signs says: with a removed attention block, it must.
DENSE_ATTENTION: dict[str, Any] = {"attention_keep": 0, "attention_rest": False, "sign_from": 0}


@dataclass(frozen=True)
class ProjectionSpec:
    """One linear that an embedder's pooled vector goes through, in float32: activation(linear(x)).

    `normalize`: x has length 1 before it.
    """

    features: int
    activation: str = "identity"
    normalize: bool = False


@dataclass(frozen=True)
class HeadSpec:
    """Hold what turns hidden states into the answer.

    pooled = cls, mean or another of `POOLINGS` of the last hidden states, or several, joined by "+" in `pooling`: one
    after another. An embedder's go through its `projections`, and `embed` gives the first `truncate_dim` elements of
    what comes out, if that is not 0;
    x = activation(dense(pooled)) if `dense_features`, else pooled;
    logits = out(x) if the task has labels.

    A model of a task per token (`PER_TOKEN`) has these logits of every token: in place of the pooled state stands the
    token's own.

    `activation_fn` is the activation that a sentence-transformers CrossEncoder names in its config; it is applied by
    `Model.scores`. `function_to_apply` is what transformers' text-classification pipeline applies to the same logits.
    """

    pooling: str = "cls"
    dense_features: int | None = None
    dense_activation: str = "tanh"
    dense_kind: LinearKind = "f32"
    out_kind: LinearKind = "f32"
    normalize: bool = False
    activation_fn: str = ""
    function_to_apply: str = ""
    projections: tuple[ProjectionSpec, ...] = ()
    truncate_dim: int = 0

    @property
    def poolings(self) -> tuple[str, ...]:
        """The modes that stand one after another in a pooled vector."""
        return tuple(self.pooling.split("+"))


@dataclass(frozen=True)
class TextSpec:
    """Say how texts are read and vectors compared, as the checkpoint's own library does it.

    What a tokenizer can say itself stands in tokenizer.json, the side that a text over the limit loses among it
    (`truncation.direction`).

    prompts               texts by name that may be put before a text that is embedded
    default_prompt_name   the one that is put there if a caller names none; "" for no prompt
    include_prompt        whether mean pooling takes in the prompt's tokens
    similarity_fn_name    how two embeddings are compared
    """

    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str = ""
    include_prompt: bool = True
    similarity_fn_name: str = "cosine"


@dataclass(frozen=True)
class ModelSpec:
    """An encoder with its task head. Sizes in elements; `max_length` in tokens, specials included.

    `always_kept`: ids of tokens (separators) whose keys sign-matching attention never drops.
    `wide_words`: how many rows of an embedding table of kind s2 have four bits; 0 for other kinds.
    `relative_buckets` over 0: scores of attention are biased by relative position, in so many buckets of distances, of
    which the last begins at `relative_distance` tokens (`approxrt.runtime.relative_positions`).
    `gated`: the FFN is down(activation(gate(x)) * up(x)), else down(activation(up(x))).
    `rope_theta` over 0: queries and keys are turned by their positions (RoPE, in halves), and embeddings have none.
    `layer_order`: which of `layers` each step runs, where layers are shared; empty: each once, in order.
    """

    architecture: str
    task_type: TaskType
    vocab_size: int
    embedding_size: int
    hidden_size: int
    max_positions: int
    type_vocab_size: int
    layer_norm_eps: float
    activation: str
    layers: tuple[LayerSpec, ...]
    head: HeadSpec
    labels: tuple[str, ...] = ()
    inputs: str = "any"
    max_length: int = 512
    embedding_kind: EmbeddingKind = "f32"
    projection_kind: LinearKind = "f32"
    pad_token_id: int = 0
    always_kept: tuple[int, ...] = ()
    wide_words: int = 0
    position_kind: PositionKind = "f32"
    text: TextSpec = field(default_factory=TextSpec)
    relative_buckets: int = 0
    relative_distance: int = 0
    layer_order: tuple[int, ...] = ()
    gated: bool = False
    rope_theta: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    # What decoders may have and encoders have not: a transform before `down`.
    down_block: ClassVar[int] = 0

    @property
    def has_projection(self) -> bool:
        """ELECTRA's small embeddings are projected to the hidden size."""
        return self.embedding_size != self.hidden_size

    @property
    def steps(self) -> tuple[int, ...]:
        """The layer of each step of a pass."""
        return self.layer_order or tuple(range(len(self.layers)))

    @property
    def num_outputs(self) -> int:
        """Width of `logits`; 0 for an embedding model."""
        return len(self.labels)

    @property
    def per_token(self) -> bool:
        """Tell whether the head reads every token: logits are [tokens, outputs] of a text, not [outputs]."""
        return self.task_type in PER_TOKEN

    @property
    def pooled_size(self) -> int:
        """Width of a pooled vector behind the projections."""
        projections = self.head.projections
        return projections[-1].features if projections else self.hidden_size * len(self.head.poolings)

    @property
    def vector_size(self) -> int:
        """Width of what `embed` gives."""
        return min(self.pooled_size, self.head.truncate_dim or self.pooled_size)

    def linears(self) -> Iterator[tuple[str, LinearSpec]]:
        """Every linear of the model as (name, spec), in execution order; removed blocks have none."""
        if self.has_projection:
            yield "embeddings.projection", LinearSpec(self.embedding_size, self.hidden_size, self.projection_kind)
        for i, layer in enumerate(self.layers):
            if layer.has_attention:
                inner = layer.num_heads * layer.head_dim
                for part in ("query", "key", "value"):
                    yield f"layers.{i}.attention.{part}", LinearSpec(self.hidden_size, inner, getattr(layer, part))
                yield f"layers.{i}.attention.output", LinearSpec(inner, self.hidden_size, layer.attention_output)
            if layer.has_ffn:
                if self.gated:
                    yield f"layers.{i}.ffn.gate", LinearSpec(self.hidden_size, layer.intermediate_size, layer.ffn_gate)
                yield f"layers.{i}.ffn.up", LinearSpec(self.hidden_size, layer.intermediate_size, layer.ffn_up)
                yield f"layers.{i}.ffn.down", LinearSpec(layer.intermediate_size, self.hidden_size, layer.ffn_down)
        features = self.hidden_size * len(self.head.poolings)
        for i, projection in enumerate(self.head.projections):
            yield f"head.projections.{i}", LinearSpec(features, projection.features, "f32")
            features = projection.features
        if self.head.dense_features is not None:
            yield "head.dense", LinearSpec(features, self.head.dense_features, self.head.dense_kind)
            features = self.head.dense_features
        if self.labels:
            yield "head.out", LinearSpec(features, len(self.labels), self.head.out_kind)

    @property
    def embedding_group_scale(self) -> int:
        """The largest group scale of an int4 embedding table."""
        return MAX_ROW_GROUP_SCALE

    def stays_f32(self, name: str) -> bool:
        """Tell whether a conversion leaves the linear in float32: the head's run once a text."""
        return name.startswith("head.")

    def removed_biases(self) -> Iterator[tuple[str, str]]:
        """Return (block, its bias) of every removed block: ("layers.2.ffn", "layers.2.ffn.down.bias")."""
        for i, layer in enumerate(self.layers):
            if not layer.has_attention:
                yield f"layers.{i}.attention", f"layers.{i}.attention.output.bias"
            if not layer.has_ffn:
                yield f"layers.{i}.ffn", f"layers.{i}.ffn.down.bias"

    def with_linear_kinds(self, kinds: Mapping[str, LinearKind]) -> ModelSpec:
        """A copy in which the named linears (names as in `linears()`) have the given kinds."""
        fields = {
            "attention.query": "query",
            "attention.key": "key",
            "attention.value": "value",
            "attention.output": "attention_output",
            "ffn.gate": "ffn_gate",
            "ffn.up": "ffn_up",
            "ffn.down": "ffn_down",
        }
        known = {name for name, _ in self.linears()}
        unknown = sorted(set(kinds) - known)
        if unknown:
            raise KeyError(f"no such linears: {unknown}")
        if rounded := [name for name in kinds if name.startswith("head.projections.") and kinds[name] != "f32"]:
            raise ValueError(f"projections are float32: {rounded}")
        layers = []
        for i, layer in enumerate(self.layers):
            changes: dict[str, Any] = {
                attr: kinds[f"layers.{i}.{part}"] for part, attr in fields.items() if f"layers.{i}.{part}" in kinds
            }
            layers.append(dataclasses.replace(layer, **changes))
        head = dataclasses.replace(
            self.head,
            dense_kind=kinds.get("head.dense", self.head.dense_kind),
            out_kind=kinds.get("head.out", self.head.out_kind),
        )
        return dataclasses.replace(
            self,
            layers=tuple(layers),
            head=head,
            projection_kind=kinds.get("embeddings.projection", self.projection_kind),
        )

    def dense_tensors(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Return (name, dtype, shape) of every tensor whose shape the spec alone decides.

        The number of tiles of a block-sparse linear depends on its data: what is
        in `TILE_PARTS` is not listed here (`indptr`, `scale` and `bias` are).
        Dtypes are safetensors names: F32, F16, I8, I32, U8.
        """
        v, e, h = self.vocab_size, self.embedding_size, self.hidden_size
        yield from embedding_tensors(self.embedding_kind, v, e, self.wide_words)
        if self.rope_theta:
            pass
        elif self.position_kind == "s8":
            yield "embeddings.position.q", "I8", (self.max_positions, e)
            yield "embeddings.position.scale", "F32", (self.max_positions,)
        else:
            yield "embeddings.position.weight", "F32", (self.max_positions, e)
        if self.type_vocab_size:
            yield "embeddings.token_type.weight", "F32", (self.type_vocab_size, e)
        yield "embeddings.norm.weight", "F32", (e,)
        yield "embeddings.norm.bias", "F32", (e,)
        for i in range(len(self.layers)):
            for part in ("attention", "ffn"):
                yield f"layers.{i}.{part}.norm.weight", "F32", (h,)
                yield f"layers.{i}.{part}.norm.bias", "F32", (h,)
        for i, layer in enumerate(self.layers):
            if self.relative_buckets and layer.has_attention:
                yield f"layers.{i}.attention.relative_bias", "F32", (layer.num_heads, self.relative_buckets)
        for _, bias in self.removed_biases():
            yield bias, "F32", (h,)
        for name, linear in self.linears():
            yield from linear_tensors(name, linear)

    # -- JSON ---------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The `model` object of config.json.

        Fields that came after the format are left out at their defaults, so that older readers take what they know.
        """
        data = dataclasses.asdict(self)
        data["text"]["prompts"] = dict(self.text.prompts)
        if self.text == TextSpec():
            del data["text"]
        data["head"]["projections"] = [dataclasses.asdict(projection) for projection in self.head.projections]
        for name in ("activation_fn", "function_to_apply", "projections", "truncate_dim"):
            if not data["head"][name]:
                del data["head"][name]
        for name in ("relative_buckets", "relative_distance", "layer_order", "gated", "rope_theta"):
            if not data[name]:
                del data[name]
        if self.layer_order:
            data["layer_order"] = list(self.layer_order)
        data["labels"] = list(self.labels)
        data["always_kept"] = list(self.always_kept)
        data["layers"] = [dataclasses.asdict(layer) for layer in self.layers]
        for layer in data["layers"]:
            if layer["ffn_gate"] == "f32":
                del layer["ffn_gate"]
        data["extra"] = dict(self.extra)
        return data
