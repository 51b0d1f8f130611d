"""Build encoders of BERT's kind: learned embeddings, then layers whose norms follow the residual sums.

What differs from family to family is a `PostNormFamily`: names of tensors and of config keys, the head, and what its
positions and token types mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from approxrt.artifact.spec.encoder import LayerSpec, ModelSpec
from approxrt.errors import CheckpointError
from approxrt.models.base import (
    BERT_LAYER,
    Config,
    HeadNames,
    LayerNames,
    Readout,
    Weights,
    take_layers,
    take_task,
)


@dataclass(frozen=True)
class ConfigKeys:
    """Name where config.json has a size."""

    hidden_size: str = "hidden_size"
    num_layers: str = "num_hidden_layers"
    num_heads: str = "num_attention_heads"
    intermediate_size: str = "intermediate_size"
    embedding_size: str = "hidden_size"
    activation: str = "hidden_act"


@dataclass(frozen=True)
class PostNormFamily:
    """See the module's text.

    layer_norm_eps         where transformers has it as a constant; None: config.json says it
    token_types            the encoder has rows for them
    positions_after_pad    positions count from pad_token_id + 1: the rows before are never read, and are cut off
    projection             the linear from embeddings to the hidden size, where these differ
    relative_bias          the table of attention biases, [buckets, heads], that all layers share
    relative_buckets       its rows
    relative_distance      where the last bucket begins, in tokens
    fold_single_type       a single token type's row, which is added to every token, goes into the position table
    """

    architecture: str
    head: HeadNames
    layer: LayerNames = BERT_LAYER
    keys: ConfigKeys = ConfigKeys()
    layer_norm_eps: float | None = None
    token_types: bool = True
    positions_after_pad: bool = False
    fold_single_type: bool = False
    projection: str = "embeddings_project"
    relative_bias: str | None = None
    relative_buckets: int = 0
    relative_distance: int = 0


def build_post_norm(
    family: PostNormFamily,
    config: Config,
    weights: Weights,
    pooling: Readout,
    order: tuple[int, ...] = (),
    inner: int = 1,
) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Return (all-f32 spec, tensors).

    pooling  None for a classifier, which reads the first token
    order    the layer of each step, where layers are shared
    inner    layers of a group; see `take_layers`
    """
    keys, vocab, pad = family.keys, config.size("vocab_size"), config.size("pad_token_id", 0)
    hidden, embedding = config.size(keys.hidden_size), config.size(keys.embedding_size)
    rows = config.size("max_position_embeddings")
    types = config.size("type_vocab_size", 0) if family.token_types else 0
    first = pad + 1 if family.positions_after_pad else 0
    if rows <= first:
        raise CheckpointError(
            f"config.json: max_position_embeddings is {rows}; positions of {family.architecture} start at "
            f"pad_token_id + 1 = {first}"
        )
    weights.take("embeddings.word.weight", "embeddings.word_embeddings.weight", (vocab, embedding))
    table = weights.take("embeddings.position.weight", "embeddings.position_embeddings.weight", (rows, embedding))
    if types:
        weights.take("embeddings.token_type.weight", "embeddings.token_type_embeddings.weight", (types, embedding))
    if first and table.size:
        weights.out["embeddings.position.weight"] = np.ascontiguousarray(table[first:])
    if types == 1 and family.fold_single_type:
        row, types = weights.out.pop("embeddings.token_type.weight"), 0
        if table.size and row.size:
            weights.out["embeddings.position.weight"] = weights.out["embeddings.position.weight"] + row[0]
    weights.norm("embeddings.norm", "embeddings.LayerNorm", embedding)
    if embedding != hidden:
        weights.linear("embeddings.projection", family.projection, hidden, embedding)
    layer = LayerSpec(*config.heads(keys.hidden_size, keys.num_heads), config.size(keys.intermediate_size))
    count = max(order) + 1 if order else config.layers(keys.num_layers)
    layers = take_layers(weights, family.layer, hidden, layer, count, inner)
    if family.relative_bias is not None:
        _take_relative_bias(family, family.relative_bias, weights, len(layers), layer.num_heads)
    task = take_task(config, weights, hidden, family.head, pooling)
    eps = family.layer_norm_eps
    spec = ModelSpec(
        architecture=family.architecture,
        task_type=task.task_type,
        vocab_size=vocab,
        embedding_size=embedding,
        hidden_size=hidden,
        max_positions=rows - first,
        type_vocab_size=types,
        layer_norm_eps=config.number("layer_norm_eps") if eps is None else eps,
        activation=config.activation(keys.activation),
        layers=layers,
        head=task.head,
        labels=task.labels,
        max_length=rows - first,
        pad_token_id=pad,
        relative_buckets=family.relative_buckets,
        relative_distance=family.relative_distance,
        layer_order=() if order == tuple(range(count)) else order,
    )
    return spec, weights.finish()


def _take_relative_bias(family: PostNormFamily, source: str, weights: Weights, layers: int, heads: int) -> None:
    """Give every layer the table, a row a head: pruning takes heads out of each layer by itself."""
    target = "layers.{}.attention.relative_bias"
    table = weights.take(target.format(0), source, (family.relative_buckets, heads))
    rows = np.ascontiguousarray(table.T)
    for i in range(layers):
        weights.out[target.format(i)] = rows
