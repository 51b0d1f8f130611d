"""Check the parts of an encoder's spec that only some families have: relative positions, shared layers, projections."""

from __future__ import annotations

from collections.abc import Iterator

from approxrt.artifact.spec.encoder import (
    MAX_DIM,
    MAX_LAYERS,
    MAX_POOLINGS,
    MAX_PROJECTIONS,
    MAX_RELATIVE_BIASES,
    MAX_RELATIVE_BUCKETS,
    MAX_ROPE_ELEMENTS,
    ModelSpec,
)
from approxrt.artifact.spec.faults import _some, show


def relative_faults(spec: ModelSpec) -> Iterator[str]:
    """Buckets that divide into halves of halves, and no more of them than a model has use for."""
    buckets, distance = spec.relative_buckets, spec.relative_distance
    if not buckets:
        if distance:
            yield f"model.relative_distance is {show(distance)}; it must be 0 where relative_buckets is 0"
        return
    if not 4 <= buckets <= MAX_RELATIVE_BUCKETS or buckets % 4:
        yield (
            f"model.relative_buckets is {show(buckets)}; it must be 0 or a multiple of 4 up to {MAX_RELATIVE_BUCKETS}"
        )
    elif not buckets // 4 < distance <= MAX_DIM:
        yield f"model.relative_distance is {show(distance)}; it must be between {buckets // 4 + 1} and {MAX_DIM}"
    biases = sum(layer.num_heads for layer in spec.layers) * (2 * spec.max_positions - 1)
    if biases > MAX_RELATIVE_BIASES:
        yield (
            f"model.relative_buckets: heads of all layers times distances (2 max_positions - 1) are {show(biases)}; "
            f"the limit is {MAX_RELATIVE_BIASES}"
        )
    for i, layer in enumerate(spec.layers[:MAX_LAYERS]):
        if layer.attention_keep:
            yield (
                f"model.layers[{i}].attention_keep is {show(layer.attention_keep)}; it must be 0 where attention is "
                "biased by relative position (relative_buckets)"
            )


def order_faults(spec: ModelSpec) -> Iterator[str]:
    """Steps that name layers, every layer among them; what is shared is whole."""
    order, count = spec.layer_order, len(spec.layers)
    if not order:
        return
    if len(order) > MAX_LAYERS:
        yield f"model.layer_order has {len(order)} entries; the limit is {MAX_LAYERS}"
        return
    for i, step in enumerate(order):
        if not 0 <= step < count:
            yield f"model.layer_order[{i}] is {show(step)}; it must be between 0 and {count - 1}"
    if unused := sorted(set(range(min(count, MAX_LAYERS))) - set(order)):
        yield f"model.layer_order runs layers {_some([str(i) for i in unused])} nowhere"
    for i, layer in enumerate(spec.layers[:MAX_LAYERS]):
        if not layer.has_attention or not layer.has_ffn:
            yield f"model.layers[{i}] has a removed block; with layer_order it must have both"


def rope_faults(spec: ModelSpec) -> Iterator[str]:
    """Heads of one even size, which are turned, no table of positions, and tables of angles within limits."""
    theta = spec.rope_theta
    if not theta:
        return
    if not 1 < theta <= 1e30:
        yield f"model.rope_theta is {show(theta)}; it must be 0, or over 1 and at most 1e30"
    if spec.position_kind != "f32":
        yield f"model.position_kind is {show(spec.position_kind)}; with rope_theta it must be 'f32'"
    dims = sorted({layer.head_dim for layer in spec.layers if layer.has_attention})
    if len(dims) > 1 or any(dim % 2 for dim in dims):
        yield f"model.rope_theta: heads have {', '.join(map(show, dims[:8]))} elements; one even number is needed"
    if dims and dims[-1] * spec.max_positions > MAX_ROPE_ELEMENTS:
        yield (
            f"model.rope_theta: head_dim times max_positions is {show(dims[-1] * spec.max_positions)}; the limit is "
            f"{MAX_ROPE_ELEMENTS}"
        )
    for i, layer in enumerate(spec.layers[:MAX_LAYERS]):
        if layer.attention_keep:
            yield f"model.layers[{i}].attention_keep is {show(layer.attention_keep)}; with rope_theta it must be 0"


def gate_faults(spec: ModelSpec) -> Iterator[str]:
    """A gate's kind where there is a gate."""
    for i, layer in enumerate(spec.layers[:MAX_LAYERS]):
        if layer.ffn_gate != "f32" and not spec.gated:
            yield f"model.layers[{i}].ffn_gate is {show(layer.ffn_gate)}; it must be 'f32' where gated is false"


def vector_faults(spec: ModelSpec) -> Iterator[str]:
    """What becomes of a pooled vector: within limits, and only where no head of labels reads it."""
    head, several = spec.head, len(spec.head.poolings)
    if several > MAX_POOLINGS or several * spec.hidden_size > MAX_DIM:
        yield (
            f"model.head.pooling has {several} modes of {show(spec.hidden_size)} elements; the limits are "
            f"{MAX_POOLINGS} modes and {MAX_DIM} elements"
        )
    if len(head.projections) > MAX_PROJECTIONS:
        yield f"model.head.projections has {len(head.projections)} entries; the limit is {MAX_PROJECTIONS}"
    if spec.labels and (several > 1 or head.projections or head.truncate_dim):
        yield "model.head: several poolings, projections and truncate_dim are for models without labels"
    if head.projections and not spec.text.include_prompt:
        yield "model.text.include_prompt is false; with model.head.projections it must be true"
