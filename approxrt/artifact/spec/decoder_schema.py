"""Check that a decoder's spec is sound; the counterpart of `approxrt.artifact.spec.encoder_schema`, whose helpers it
uses.

Every fault is collected; nothing is raised, whatever the JSON holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from approxrt.artifact.spec.decoder import (
    DECODER_ACTIVATIONS,
    DENSE_DECODER_ATTENTION,
    DOWN_BLOCKS,
    NORMS,
    POSITIONS,
    ROPE_SCALINGS,
    SUM_BLOCK,
    TASK,
    DecoderLayerSpec,
    DecoderSpec,
    HeadPreviewSpec,
    RopeSpec,
)
from approxrt.artifact.spec.encoder import MAX_DIM, MAX_LAYERS, MAX_SIGN_DIM, MAX_VOCAB
from approxrt.artifact.spec.faults import MAX_NAME, build_object, is_text, object_fields, show
from approxrt.artifact.spec.formats import GROUP_KINDS, GROUP_WEIGHTS, LINEAR_KINDS, TABLE_KINDS

MAX_TEMPLATE = 1 << 18  # characters of a chat template
MAX_CONTEXT = 1 << 22  # positions: rotary ones need no table
MAX_MARGIN = 1e30  # of a preview: a float32 that every logit is far below
MAX_ENDS = 64  # tokens that end a text

_INTS = ("vocab_size", "hidden_size", "max_positions", "down_block")
_TEXTS = (
    "architecture",
    "norm",
    "activation",
    "positions",
    "embedding_kind",
    "head_kind",
    "chat_template",
    "task_type",
)
_BOOLS = ("gated", "tied_embeddings")
_SIZES = ("num_heads", "num_kv_heads", "head_dim", "intermediate_size")
_SIGNS = ("attention_keep", "sign_from", "sign_window", "sign_codes")
_ATTENTION = ("query", "key", "value", "attention_output")
_FFN = ("ffn_gate", "ffn_up", "ffn_down")
_ROPE_NUMBERS = ("theta", "factor", "low_freq_factor", "high_freq_factor")


def decoder_from_json(data: Any) -> tuple[DecoderSpec | None, list[str]]:
    """Return (spec, faults) of the `model` object of config.json; the spec is None when structure or types are
    wrong."""
    faults: list[str] = []
    fields = object_fields(data, DecoderSpec, "model", faults)
    if fields is None:
        return None, faults
    layers = fields.get("layers")
    if isinstance(layers, list):
        if len(layers) > MAX_LAYERS:
            return None, [*faults, f"model.layers has {len(layers)} entries; the limit is {MAX_LAYERS}"]
        built = [build_object(layer, DecoderLayerSpec, f"model.layers[{i}]", faults) for i, layer in enumerate(layers)]
        fields["layers"] = tuple(layer for layer in built if layer is not None)
    elif "layers" in fields:
        faults.append(f"model.layers is {show(layers)}; a list is needed")
    if fields.get("rope") is not None:
        fields["rope"] = _rope_from_json(fields["rope"], faults)
    ends = fields.get("eos_token_ids", [])
    if isinstance(ends, list):
        fields["eos_token_ids"] = tuple(ends)
    else:
        faults.append(f"model.eos_token_ids is {show(ends)}; a list is needed")
    if fields.get("head_preview") is not None:
        fields["head_preview"] = build_object(fields["head_preview"], HeadPreviewSpec, "model.head_preview", faults)
    if faults:
        return None, faults
    spec = DecoderSpec(**fields)
    types = _type_faults(spec)
    return (None, types) if types else (spec, decoder_faults(spec))


def _rope_from_json(data: Any, faults: list[str]) -> Any:
    factors = data.get("frequency_factors", []) if isinstance(data, Mapping) else []
    if not isinstance(factors, list):
        faults.append(f"model.rope.frequency_factors is {show(factors)}; a list is needed")
        return None
    if factors:
        data = {**data, "frequency_factors": tuple(factors)}
    elif isinstance(data, Mapping):
        data = {key: value for key, value in data.items() if key != "frequency_factors"}
    return build_object(data, RopeSpec, "model.rope", faults)


def decoder_faults(spec: DecoderSpec) -> list[str]:
    """All faults of a spec, in plain words; empty when it is sound. Never raises."""
    return _type_faults(spec) or [*_range_faults(spec), *_choice_faults(spec), *_token_faults(spec)]


def _type_faults(spec: DecoderSpec) -> list[str]:
    faults: list[str] = []

    def need(ok: bool, where: str, value: Any, what: str) -> None:
        if not ok:
            faults.append(f"{where} is {show(value)}; {what} is needed")

    for name in _INTS:
        need(type(getattr(spec, name)) is int, f"model.{name}", getattr(spec, name), "an integer")
    for name in _TEXTS:
        need(is_text(getattr(spec, name)), f"model.{name}", getattr(spec, name), "a string")
    for name in _BOOLS:
        need(type(getattr(spec, name)) is bool, f"model.{name}", getattr(spec, name), "true or false")
    need(type(spec.norm_eps) in (int, float), "model.norm_eps", spec.norm_eps, "a number")
    need(isinstance(spec.extra, Mapping), "model.extra", spec.extra, "an object")
    if isinstance(spec.special_tokens, Mapping):
        for name, text in spec.special_tokens.items():
            need(is_text(name) and is_text(text), "model.special_tokens", text, "names and strings")
    else:
        need(False, "model.special_tokens", spec.special_tokens, "an object")
    if isinstance(spec.eos_token_ids, tuple):
        for token in spec.eos_token_ids[:MAX_ENDS]:
            need(type(token) is int, "model.eos_token_ids", token, "a list of integers")
    else:
        need(False, "model.eos_token_ids", spec.eos_token_ids, "a sequence of integers")
    if spec.rope is not None:
        if isinstance(spec.rope, RopeSpec):
            for name in _ROPE_NUMBERS:
                value = getattr(spec.rope, name)
                need(type(value) in (int, float), f"model.rope.{name}", value, "a number")
            need(is_text(spec.rope.scaling), "model.rope.scaling", spec.rope.scaling, "a string")
            original = spec.rope.original_positions
            need(type(original) is int, "model.rope.original_positions", original, "an integer")
            factors = spec.rope.frequency_factors
            sound = isinstance(factors, tuple) and all(type(factor) in (int, float) for factor in factors)
            need(sound, "model.rope.frequency_factors", factors, "a sequence of numbers")
        else:
            need(False, "model.rope", spec.rope, "an object or null")
    if isinstance(spec.head_preview, HeadPreviewSpec):
        preview = spec.head_preview
        need(type(preview.width) is int, "model.head_preview.width", preview.width, "an integer")
        need(type(preview.margin) in (int, float), "model.head_preview.margin", preview.margin, "a number")
        for name in ("project", "out"):
            need(is_text(getattr(preview, name)), f"model.head_preview.{name}", getattr(preview, name), "a string")
    elif spec.head_preview is not None:
        need(False, "model.head_preview", spec.head_preview, "an object or null")
    if not isinstance(spec.layers, tuple):
        need(False, "model.layers", spec.layers, "a sequence of layers")
        return faults
    for i, layer in enumerate(spec.layers):
        if not isinstance(layer, DecoderLayerSpec):
            need(False, f"model.layers[{i}]", layer, "a layer")
            continue
        for name in _SIZES + _SIGNS:
            need(type(getattr(layer, name)) is int, f"model.layers[{i}].{name}", getattr(layer, name), "an integer")
        rest = layer.attention_rest
        need(type(rest) is bool, f"model.layers[{i}].attention_rest", rest, "true or false")
        for name in _ATTENTION + _FFN:
            need(is_text(getattr(layer, name)), f"model.layers[{i}].{name}", getattr(layer, name), "a string")
    return faults


def _range_faults(spec: DecoderSpec) -> Iterator[str]:
    def between(where: str, value: int, low: int, high: int) -> Iterator[str]:
        if not low <= value <= high:
            yield f"{where} is {show(value)}; it must be between {low} and {high}"

    yield from between("model.vocab_size", spec.vocab_size, 1, MAX_VOCAB)
    yield from between("model.hidden_size", spec.hidden_size, 1, MAX_DIM)
    highest = MAX_DIM if spec.positions == "learned" else MAX_CONTEXT
    yield from between("model.max_positions", spec.max_positions, 1, highest)
    if not 0 <= spec.norm_eps <= 1:
        yield f"model.norm_eps is {show(spec.norm_eps)}; it must be between 0 and 1"
    if not 1 <= len(spec.layers) <= MAX_LAYERS:
        yield f"model.layers has {len(spec.layers)} entries; it must have 1 to {MAX_LAYERS}"
    for i, layer in enumerate(spec.layers[:MAX_LAYERS]):
        where = f"model.layers[{i}]"
        yield from between(f"{where}.num_heads", layer.num_heads, 0, MAX_DIM)
        # A removed block has neither.
        yield from between(f"{where}.num_kv_heads", layer.num_kv_heads, 1 if layer.num_heads else 0, layer.num_heads)
        yield from between(f"{where}.head_dim", layer.head_dim, 1, 1 << 10)
        yield from between(f"{where}.intermediate_size", layer.intermediate_size, 0, MAX_DIM)
        if spec.down_block in DOWN_BLOCKS[1:] and layer.intermediate_size % spec.down_block:
            yield f"{where}.intermediate_size is {layer.intermediate_size}; it must be a multiple of {spec.down_block}"
        if layer.num_kv_heads > 0 and layer.num_heads % layer.num_kv_heads:
            yield f"{where}.num_heads is {layer.num_heads}; it must be a multiple of num_kv_heads {layer.num_kv_heads}"
        if layer.num_heads * layer.head_dim > MAX_DIM:
            yield f"{where}: num_heads * head_dim is {show(layer.num_heads * layer.head_dim)}; the limit is {MAX_DIM}"
        if spec.positions == "rope" and layer.head_dim % 2:
            yield f"{where}.head_dim is {layer.head_dim}; rotary positions need an even one"
        yield from _sign_faults(where, layer)
    dims = sorted({layer.head_dim for layer in spec.layers[:MAX_LAYERS] if layer.has_attention})
    if spec.positions == "rope" and len(dims) > 1:
        yield f"layers have heads of {dims[0]} to {dims[-1]} elements; with rotary positions all must have the same"
    if spec.rope is not None:
        for name in _ROPE_NUMBERS:
            value = getattr(spec.rope, name)
            if not 0 < value <= 1e12:
                yield f"model.rope.{name} is {show(value)}; it must be over 0 and at most 1e12"
        yield from between("model.rope.original_positions", spec.rope.original_positions, 1, MAX_CONTEXT)
        factors, dim = spec.rope.frequency_factors, dims[0] if dims else 0
        if factors and dim and len(factors) != dim // 2:
            yield f"model.rope.frequency_factors has {len(factors)} entries; heads of {dim} need {dim // 2}"
        if not all(0 < factor <= 1e12 for factor in factors):
            yield "model.rope.frequency_factors has entries that are not over 0 and at most 1e12"
        if spec.rope.scaling == "llama3" and spec.rope.high_freq_factor <= spec.rope.low_freq_factor:
            yield (
                f"model.rope.high_freq_factor is {show(spec.rope.high_freq_factor)}; it must be over "
                f"low_freq_factor {show(spec.rope.low_freq_factor)}"
            )


def _preview_faults(spec: DecoderSpec) -> Iterator[str]:
    """A preview stands before a head that can be had a word at a time, out of the embedding table's rows."""
    preview, where = spec.head_preview, "model.head_preview"
    if preview is None:
        return
    if not spec.tied_embeddings or spec.embedding_kind != "g8":
        table = f"{'tied' if spec.tied_embeddings else 'not tied'}, the embedding table {show(spec.embedding_kind)}"
        yield (
            f"{where} is there, and the head is {table}; it must be a tied embedding table of kind 'g8' "
            "(convert with bits=5, or leave the preview out)"
        )
    if not (GROUP_WEIGHTS <= preview.width <= MAX_DIM and preview.width % GROUP_WEIGHTS == 0):
        width = show(preview.width)
        yield f"{where}.width is {width}; it must be a multiple of {GROUP_WEIGHTS} from {GROUP_WEIGHTS} to {MAX_DIM}"
    if not 0 <= preview.margin <= MAX_MARGIN:
        yield f"{where}.margin is {show(preview.margin)}; it must be between 0 and {MAX_MARGIN:g}"
    for name, allowed in (("project", ("f32", *GROUP_KINDS)), ("out", GROUP_KINDS)):
        kind = getattr(preview, name)
        if kind not in allowed:
            yield f"{where}.{name} is {show(kind)}; it must be one of {', '.join(allowed)}"


def _sign_faults(where: str, layer: DecoderLayerSpec) -> Iterator[str]:
    keep = layer.attention_keep
    if keep == 0:
        for name, value in DENSE_DECODER_ATTENTION.items():
            if getattr(layer, name) != value:
                found = show(getattr(layer, name))
                yield f"{where}.{name} is {found}; it must be {show(value)} where attention_keep is 0"
        return
    if not layer.has_attention:
        yield f"{where}.attention_keep is {show(keep)}; it must be 0 in a removed block (num_heads is 0)"
    low = max(keep + 1, SUM_BLOCK)
    for name, least, most in (
        ("attention_keep", 1, MAX_CONTEXT),
        ("sign_from", low, max(low, MAX_CONTEXT)),
        ("sign_window", 1, MAX_CONTEXT),
        ("sign_codes", 0, MAX_SIGN_DIM),
    ):
        value = getattr(layer, name)
        if not least <= value <= most:
            yield f"{where}.{name} is {show(value)}; it must be between {least} and {most}"
    if layer.sign_codes == 0 and layer.head_dim > MAX_SIGN_DIM:
        yield f"{where}.head_dim is {show(layer.head_dim)}; with attention_keep it must be at most {MAX_SIGN_DIM}"


def _choice_faults(spec: DecoderSpec) -> Iterator[str]:
    def one_of(where: str, value: str, allowed: Iterable[str]) -> Iterator[str]:
        if value not in tuple(allowed):
            yield f"{where} is {show(value)}; it must be one of {', '.join(allowed)}"

    yield from one_of("model.task_type", spec.task_type, (TASK,))
    yield from one_of("model.norm", spec.norm, NORMS)
    yield from one_of("model.positions", spec.positions, POSITIONS)
    yield from one_of("model.activation", spec.activation, DECODER_ACTIVATIONS)
    if spec.down_block not in DOWN_BLOCKS:
        yield f"model.down_block is {show(spec.down_block)}; it must be one of {', '.join(map(str, DOWN_BLOCKS))}"
    yield from one_of("model.embedding_kind", spec.embedding_kind, TABLE_KINDS)
    yield from one_of("model.head_kind", spec.head_kind, LINEAR_KINDS)
    if spec.tied_embeddings and spec.head_kind != "f32":
        yield f"model.head_kind is {show(spec.head_kind)}; it must be 'f32' where the head is the embedding table"
    if (spec.rope is None) != (spec.positions != "rope"):
        yield f"model.rope must be there for rotary positions, and only then; positions is {show(spec.positions)}"
    if spec.rope is not None:
        yield from one_of("model.rope.scaling", spec.rope.scaling, ROPE_SCALINGS)
    for i, layer in enumerate(spec.layers[:MAX_LAYERS]):
        where = f"model.layers[{i}]"
        for name in _ATTENTION + _FFN:
            yield from one_of(f"{where}.{name}", getattr(layer, name), LINEAR_KINDS)
        gone = (() if layer.has_attention else _ATTENTION) + (() if layer.has_ffn else _FFN)
        if not spec.gated and "ffn_gate" not in gone:
            gone = (*gone, "ffn_gate")
        for name in gone:
            if getattr(layer, name) != "f32":
                yield f"{where}.{name} is {show(getattr(layer, name))}; it must be 'f32' for a linear that is not there"
    if not 0 < len(spec.architecture) <= MAX_NAME:
        yield f"model.architecture has {len(spec.architecture)} characters; it must have 1 to {MAX_NAME}"
    yield from _preview_faults(spec)


def _token_faults(spec: DecoderSpec) -> Iterator[str]:
    last = min(spec.vocab_size, MAX_VOCAB) - 1
    if len(spec.eos_token_ids) > MAX_ENDS:
        yield f"model.eos_token_ids has {len(spec.eos_token_ids)} entries; the limit is {MAX_ENDS}"
    for token in spec.eos_token_ids[:MAX_ENDS]:
        if not 0 <= token <= last:
            yield f"model.eos_token_ids has {show(token)}; token ids are 0 to {last}"
    if len(spec.chat_template) > MAX_TEMPLATE:
        yield f"model.chat_template has {len(spec.chat_template)} characters; the limit is {MAX_TEMPLATE}"
    if len(spec.special_tokens) > MAX_ENDS or any(len(text) > MAX_NAME for text in spec.special_tokens.values()):
        yield f"model.special_tokens: at most {MAX_ENDS}, of at most {MAX_NAME} characters each"
