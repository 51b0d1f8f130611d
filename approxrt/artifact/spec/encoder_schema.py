"""Check that a spec is sound, and read one from a stranger's JSON without ever raising.

Two steps: `encoder_from_json` checks structure (objects, lists, names of fields) and
builds the dataclasses; `encoder_faults` checks types and values of a built spec.
Both collect every fault; a fault names the field, its value and the limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from approxrt.artifact.spec.encoder import (
    ACTIVATIONS,
    FFN_ACTIVATIONS,
    GATED_ACTIVATIONS,
    INPUTS,
    MAX_ALWAYS_KEPT,
    MAX_DIM,
    MAX_LABELS,
    MAX_LAYERS,
    MAX_POOLINGS,
    MAX_PROJECTIONS,
    MAX_SIGN_DIM,
    MAX_VOCAB,
    OUTPUT_ACTIVATIONS,
    OUTPUT_FUNCTIONS,
    PER_TOKEN,
    POOLINGS,
    QA_OUTPUTS,
    SIMILARITIES,
    TASK_TYPES,
    HeadSpec,
    LayerSpec,
    ModelSpec,
    ProjectionSpec,
    TextSpec,
)
from approxrt.artifact.spec.encoder_parts import (
    gate_faults,
    order_faults,
    relative_faults,
    rope_faults,
    vector_faults,
)
from approxrt.artifact.spec.faults import MAX_NAME, _some, build_object, is_text, object_fields, show
from approxrt.artifact.spec.formats import EMBEDDING_KINDS, LINEAR_KINDS, POSITION_KINDS

MAX_PROMPTS = 1000
MAX_PROMPT = 100_000  # characters


def encoder_from_json(data: Any) -> tuple[ModelSpec | None, list[str]]:
    """Return (spec, faults) of the `model` object of config.json.

    The spec is None when structure or types are wrong; a spec whose types are
    right but whose values are not comes back with its faults.
    """
    faults: list[str] = []
    fields = object_fields(data, ModelSpec, "model", faults)
    if fields is None:
        return None, faults
    layers = fields.get("layers")
    if isinstance(layers, list):
        if len(layers) > MAX_LAYERS:
            return None, [*faults, f"model.layers has {len(layers)} entries; the limit is {MAX_LAYERS}"]
        built = [build_object(layer, LayerSpec, f"model.layers[{i}]", faults) for i, layer in enumerate(layers)]
        fields["layers"] = tuple(layer for layer in built if layer is not None)
    elif "layers" in fields:
        faults.append(f"model.layers is {show(layers)}; a list is needed")
    if "head" in fields:
        fields["head"] = _head_from_json(fields["head"], faults)
    if "text" in fields:
        fields["text"] = build_object(fields["text"], TextSpec, "model.text", faults)
    for name in ("labels", "always_kept", "layer_order"):
        values = fields.get(name, [])
        if isinstance(values, list):
            fields[name] = tuple(values)
        else:
            faults.append(f"model.{name} is {show(values)}; a list is needed")
    if faults:
        return None, faults
    spec = ModelSpec(**fields)
    type_faults = _type_faults(spec)
    if type_faults:
        return None, type_faults
    return spec, encoder_faults(spec)


def _head_from_json(data: Any, faults: list[str]) -> HeadSpec | None:
    if isinstance(data, Mapping) and isinstance(projections := data.get("projections"), list):
        where = "model.head.projections"
        if len(projections) > MAX_PROJECTIONS:
            faults.append(f"{where} has {len(projections)} entries; the limit is {MAX_PROJECTIONS}")
            return None
        built = [build_object(p, ProjectionSpec, f"{where}[{i}]", faults) for i, p in enumerate(projections)]
        data = {**data, "projections": tuple(built)}
    head: HeadSpec | None = build_object(data, HeadSpec, "model.head", faults)
    return head


def encoder_faults(spec: ModelSpec) -> list[str]:
    """All faults of a spec, in plain words; empty when it is sound. Never raises."""
    faults = _type_faults(spec)
    if faults:
        return faults
    faults += _range_faults(spec)
    faults += _choice_faults(spec)
    faults += _task_faults(spec)
    return faults


# -- structure ----------------------------------------------------------------


# -- types --------------------------------------------------------------------

_INT_FIELDS = (
    "vocab_size",
    "embedding_size",
    "hidden_size",
    "max_positions",
    "type_vocab_size",
    "max_length",
    "pad_token_id",
    "wide_words",
    "relative_buckets",
    "relative_distance",
)
_STR_FIELDS = (
    "architecture",
    "task_type",
    "activation",
    "inputs",
    "embedding_kind",
    "projection_kind",
    "position_kind",
)
_LAYER_SIZES = ("num_heads", "head_dim", "intermediate_size", "attention_keep", "sign_from")
_LAYER_KINDS = ("query", "key", "value", "attention_output", "ffn_up", "ffn_down", "ffn_gate")


def _type_faults(spec: ModelSpec) -> list[str]:
    faults: list[str] = []

    def need(ok: bool, where: str, value: Any, what: str) -> None:
        if not ok:
            faults.append(f"{where} is {show(value)}; {what} is needed")

    for name in _INT_FIELDS:
        value = getattr(spec, name)
        need(type(value) is int, f"model.{name}", value, "an integer")
    for name in _STR_FIELDS:
        value = getattr(spec, name)
        need(is_text(value), f"model.{name}", value, "a string")
    eps = spec.layer_norm_eps
    need(type(eps) in (int, float), "model.layer_norm_eps", eps, "a number")
    need(type(spec.gated) is bool, "model.gated", spec.gated, "true or false")
    need(type(spec.rope_theta) in (int, float), "model.rope_theta", spec.rope_theta, "a number")
    need(isinstance(spec.extra, Mapping), "model.extra", spec.extra, "an object")
    if not isinstance(spec.labels, tuple):
        need(False, "model.labels", spec.labels, "a sequence of strings")
    else:
        for i, label in enumerate(spec.labels[:MAX_LABELS]):
            need(is_text(label), f"model.labels[{i}]", label, "a string")
    if not isinstance(spec.always_kept, tuple):
        need(False, "model.always_kept", spec.always_kept, "a sequence of token ids")
    else:
        for i, token in enumerate(spec.always_kept[: MAX_ALWAYS_KEPT + 1]):
            need(type(token) is int, f"model.always_kept[{i}]", token, "an integer")
    if not isinstance(spec.layer_order, tuple):
        need(False, "model.layer_order", spec.layer_order, "a sequence of numbers of layers")
    else:
        for i, step in enumerate(spec.layer_order[: MAX_LAYERS + 1]):
            need(type(step) is int, f"model.layer_order[{i}]", step, "an integer")
    if not isinstance(spec.layers, tuple):
        need(False, "model.layers", spec.layers, "a sequence of layers")
    else:
        for i, layer in enumerate(spec.layers):
            if not isinstance(layer, LayerSpec):
                need(False, f"model.layers[{i}]", layer, "a layer")
                continue
            for name in _LAYER_SIZES:
                need(type(getattr(layer, name)) is int, f"model.layers[{i}].{name}", getattr(layer, name), "an integer")
            rest = layer.attention_rest
            need(type(rest) is bool, f"model.layers[{i}].attention_rest", rest, "true or false")
            for name in _LAYER_KINDS:
                need(is_text(getattr(layer, name)), f"model.layers[{i}].{name}", getattr(layer, name), "a string")
    head = spec.head
    if not isinstance(head, HeadSpec):
        need(False, "model.head", head, "a head")
        return faults
    for name in ("pooling", "dense_activation", "dense_kind", "out_kind", "activation_fn", "function_to_apply"):
        need(is_text(getattr(head, name)), f"model.head.{name}", getattr(head, name), "a string")
    dense = head.dense_features
    need(dense is None or type(dense) is int, "model.head.dense_features", dense, "an integer or null")
    need(type(head.normalize) is bool, "model.head.normalize", head.normalize, "true or false")
    need(type(head.truncate_dim) is int, "model.head.truncate_dim", head.truncate_dim, "an integer")
    if not isinstance(head.projections, tuple):
        need(False, "model.head.projections", head.projections, "a sequence of projections")
        return faults
    for i, projection in enumerate(head.projections[: MAX_PROJECTIONS + 1]):
        where = f"model.head.projections[{i}]"
        if not isinstance(projection, ProjectionSpec):
            need(False, where, projection, "a projection")
            continue
        need(type(projection.features) is int, f"{where}.features", projection.features, "an integer")
        need(is_text(projection.activation), f"{where}.activation", projection.activation, "a string")
        need(type(projection.normalize) is bool, f"{where}.normalize", projection.normalize, "true or false")
    text = spec.text
    if not isinstance(text, TextSpec):
        need(False, "model.text", text, "an object")
        return faults
    for name in ("default_prompt_name", "similarity_fn_name"):
        need(is_text(getattr(text, name)), f"model.text.{name}", getattr(text, name), "a string")
    need(type(text.include_prompt) is bool, "model.text.include_prompt", text.include_prompt, "true or false")
    prompts = text.prompts
    sound = isinstance(prompts, Mapping) and all(is_text(part) for item in prompts.items() for part in item)
    need(sound, "model.text.prompts", prompts, "an object of strings")
    return faults


# -- values -------------------------------------------------------------------


def _range_faults(spec: ModelSpec) -> list[str]:
    faults: list[str] = []

    def between(where: str, value: int, low: int, high: int) -> None:
        if not low <= value <= high:
            faults.append(f"{where} is {show(value)}; it must be between {low} and {high}")

    between("model.vocab_size", spec.vocab_size, 1, MAX_VOCAB)
    between("model.embedding_size", spec.embedding_size, 1, MAX_DIM)
    between("model.hidden_size", spec.hidden_size, 1, MAX_DIM)
    between("model.max_positions", spec.max_positions, 1, MAX_DIM)
    between("model.type_vocab_size", spec.type_vocab_size, 0, MAX_DIM)
    between("model.max_length", spec.max_length, 1, max(1, min(spec.max_positions, MAX_DIM)))
    between("model.pad_token_id", spec.pad_token_id, 0, max(0, min(spec.vocab_size, MAX_VOCAB) - 1))
    mixed = spec.embedding_kind == "s2"
    between("model.wide_words", spec.wide_words, 0, max(1, min(spec.vocab_size, MAX_VOCAB)) if mixed else 0)
    if not 0 <= spec.layer_norm_eps <= 1:
        faults.append(f"model.layer_norm_eps is {show(spec.layer_norm_eps)}; it must be between 0 and 1")
    if not 1 <= len(spec.layers) <= MAX_LAYERS:
        faults.append(f"model.layers has {len(spec.layers)} entries; it must have 1 to {MAX_LAYERS}")
    for i, layer in enumerate(spec.layers[:MAX_LAYERS]):
        where = f"model.layers[{i}]"
        for name in _LAYER_SIZES:
            # 0 heads or a size of 0: a removed block
            between(f"{where}.{name}", getattr(layer, name), 1 if name == "head_dim" else 0, MAX_DIM)
        if layer.num_heads * layer.head_dim > MAX_DIM:
            inner = show(layer.num_heads * layer.head_dim)
            faults.append(f"{where}: num_heads * head_dim is {inner}; the limit is {MAX_DIM}")
        faults += _sign_faults(layer, where)
    faults += relative_faults(spec)
    faults += order_faults(spec)
    faults += rope_faults(spec)
    faults += gate_faults(spec)
    if len(spec.always_kept) > MAX_ALWAYS_KEPT:
        faults.append(f"model.always_kept has {len(spec.always_kept)} entries; the limit is {MAX_ALWAYS_KEPT}")
    for i, token in enumerate(spec.always_kept[:MAX_ALWAYS_KEPT]):
        between(f"model.always_kept[{i}]", token, 0, max(0, min(spec.vocab_size, MAX_VOCAB) - 1))
    if spec.head.dense_features is not None:
        between("model.head.dense_features", spec.head.dense_features, 1, MAX_DIM)
    for i, projection in enumerate(spec.head.projections[:MAX_PROJECTIONS]):
        between(f"model.head.projections[{i}].features", projection.features, 1, MAX_DIM)
    between("model.head.truncate_dim", spec.head.truncate_dim, 0, max(1, min(spec.pooled_size, MAX_DIM)))
    return faults


def _choice_faults(spec: ModelSpec) -> list[str]:
    faults: list[str] = []

    def one_of(where: str, value: str, allowed: Iterable[str]) -> None:
        if value not in tuple(allowed):
            faults.append(f"{where} is {show(value)}; it must be one of {', '.join(allowed)}")

    one_of("model.task_type", spec.task_type, TASK_TYPES)
    one_of("model.activation", spec.activation, GATED_ACTIVATIONS if spec.gated else FFN_ACTIVATIONS)
    one_of("model.inputs", spec.inputs, INPUTS)
    one_of("model.embedding_kind", spec.embedding_kind, EMBEDDING_KINDS)
    one_of("model.position_kind", spec.position_kind, POSITION_KINDS)
    one_of("model.projection_kind", spec.projection_kind, LINEAR_KINDS)
    for i, layer in enumerate(spec.layers[:MAX_LAYERS]):
        for name in _LAYER_KINDS:
            one_of(f"model.layers[{i}].{name}", getattr(layer, name), LINEAR_KINDS)
        faults += _removed_faults(layer, f"model.layers[{i}]")
    for mode in spec.head.poolings[:MAX_POOLINGS]:
        one_of("model.head.pooling", mode, POOLINGS)
    for i, projection in enumerate(spec.head.projections[:MAX_PROJECTIONS]):
        one_of(f"model.head.projections[{i}].activation", projection.activation, ACTIVATIONS)
    one_of("model.head.dense_activation", spec.head.dense_activation, ACTIVATIONS)
    one_of("model.head.dense_kind", spec.head.dense_kind, LINEAR_KINDS)
    one_of("model.head.out_kind", spec.head.out_kind, LINEAR_KINDS)
    one_of("model.head.activation_fn", spec.head.activation_fn, OUTPUT_ACTIVATIONS)
    one_of("model.head.function_to_apply", spec.head.function_to_apply, OUTPUT_FUNCTIONS)
    faults += _text_faults(spec.text)
    if not 0 < len(spec.architecture) <= MAX_NAME:
        faults.append(f"model.architecture has {len(spec.architecture)} characters; it must have 1 to {MAX_NAME}")
    return faults


def _text_faults(text: TextSpec) -> Iterator[str]:
    """Choices that exist, and a default prompt that is one of the prompts."""
    if text.similarity_fn_name not in SIMILARITIES:
        value = show(text.similarity_fn_name)
        yield f"model.text.similarity_fn_name is {value}; it must be one of {', '.join(SIMILARITIES)}"
    if len(text.prompts) > MAX_PROMPTS:
        yield f"model.text.prompts has {len(text.prompts)} entries; the limit is {MAX_PROMPTS}"
    longest = max((len(part) for item in text.prompts.items() for part in item), default=0)
    if longest > MAX_PROMPT:
        yield f"model.text.prompts: a prompt has {longest} characters; the limit is {MAX_PROMPT}"
    if text.default_prompt_name and text.default_prompt_name not in text.prompts:
        yield f"model.text.default_prompt_name is {show(text.default_prompt_name)}, which is none of model.text.prompts"


def _sign_faults(layer: LayerSpec, where: str) -> Iterator[str]:
    """Sign matching needs an attention block, heads that can be counted, and more tokens than it keeps."""
    keep, start = layer.attention_keep, layer.sign_from
    if not keep:
        if start:
            yield f"{where}.sign_from is {show(start)}; it must be 0 where attention_keep is 0"
        if layer.attention_rest:
            yield f"{where}.attention_rest is true; it must be false where attention_keep is 0"
        return
    if not layer.num_heads:
        yield f"{where}.attention_keep is {show(keep)}; it must be 0 in a removed block (num_heads is 0)"
    if layer.head_dim > MAX_SIGN_DIM:
        yield f"{where}.head_dim is {show(layer.head_dim)}; with attention_keep it must be at most {MAX_SIGN_DIM}"
    if start <= keep:
        yield f"{where}.sign_from is {show(start)}; it must be over attention_keep, which is {show(keep)}"


def _removed_faults(layer: LayerSpec, where: str) -> Iterator[str]:
    """Linears that are not there have no kind but the default."""
    for size, kinds in (("num_heads", _LAYER_KINDS[:4]), ("intermediate_size", _LAYER_KINDS[4:])):
        if getattr(layer, size):
            continue
        for name in kinds:
            if getattr(layer, name) != "f32":
                kind = show(getattr(layer, name))
                yield f"{where}.{name} is {kind}; it must be 'f32' in a removed block ({size} is 0)"


def _task_faults(spec: ModelSpec) -> list[str]:
    """Labels must fit the task."""
    faults: list[str] = list(vector_faults(spec))
    count = len(spec.labels)
    if count > MAX_LABELS:
        return [f"model.labels has {count} entries; the limit is {MAX_LABELS}"]
    if len(set(spec.labels)) != count:
        twice = sorted({label for label in spec.labels if spec.labels.count(label) > 1}) if count < 1000 else []
        faults.append(f"model.labels are not distinct: {_some([show(label) for label in twice])}")
    if any(not 0 < len(label) <= MAX_NAME for label in spec.labels):
        faults.append(f"model.labels: each must have 1 to {MAX_NAME} characters")
    # A one-label classifier exists (num_labels=1 with problem_type single_label); its softmax is always 1.
    expected = {"embedding": (0, 0), "regression": (1, MAX_LABELS)}.get(spec.task_type, (1, MAX_LABELS))
    if spec.task_type in TASK_TYPES and not expected[0] <= count <= expected[1]:
        faults.append(
            f"model.labels has {count} entries; a model of task_type {spec.task_type} has "
            + ("none" if expected[1] == 0 else f"{expected[0]} to {expected[1]}")
        )
    return faults + list(_per_token_faults(spec))


def _per_token_faults(spec: ModelSpec) -> Iterator[str]:
    """What a head that reads every token may be asked for: the scores of its task, of texts as its task has them."""
    if spec.task_type not in PER_TOKEN:
        return
    who, inputs = f"a model of task_type {spec.task_type}", PER_TOKEN[spec.task_type]
    if spec.inputs != inputs:
        yield f"model.inputs is {show(spec.inputs)}; {who} has {inputs!r}"
    if spec.task_type == "question_answering" and spec.labels != QA_OUTPUTS:
        yield f"model.labels are {_some([show(label) for label in spec.labels])}; {who} has {', '.join(QA_OUTPUTS)}"
    if spec.head.activation_fn:
        yield f"model.head.activation_fn is {show(spec.head.activation_fn)}; {who} has none"
    if spec.head.function_to_apply not in ("", "softmax"):
        yield f"model.head.function_to_apply is {show(spec.head.function_to_apply)}; {who} has 'softmax' or none"
