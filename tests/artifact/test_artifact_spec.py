"""The spec in an artifact's config.json: whatever stands there, faults are named and nothing is raised."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from specs import random_tensors, small_spec

from approxrt.artifact.spec.encoder import MAX_LAYERS, HeadSpec, LayerSpec
from approxrt.artifact.spec.encoder_schema import encoder_faults, encoder_from_json
from approxrt.artifact.spec.formats import LINEAR_KINDS
from approxrt.artifact.tensors import tensor_faults

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
PATHS = [
    (),
    *[(name,) for name in small_spec().to_json()],
    *[("layers", 0, name) for name in small_spec().to_json()["layers"][0]],
    ("layers", 0),
    *[("head", name) for name in small_spec().to_json()["head"]],
    ("labels", 0),
]


@given(where=st.sampled_from(PATHS), value=JSON)
def test_hostile_json_never_raises(where: tuple, value: object) -> None:
    data = small_spec().to_json()
    if not where:
        data = value
    else:
        target = data
        for key in where[:-1]:
            target = target[key]
        target[where[-1]] = value
    spec, faults = encoder_from_json(data)
    assert spec is not None or faults
    if not faults:
        assert encoder_from_json(spec.to_json()) == (spec, [])
        list(spec.dense_tensors())
    for fault in faults:
        fault.encode("utf-8")
        assert len(fault) < 2000


@given(data=JSON)
def test_any_json_is_refused(data: object) -> None:
    spec, faults = encoder_from_json(data)
    assert spec is None and faults


@pytest.mark.parametrize("field", list(small_spec().to_json()))
def test_every_field_is_checked(field: str) -> None:
    data = small_spec().to_json()
    data[field] = object()
    spec, faults = encoder_from_json(data)
    assert spec is None and any(f"model.{field}" in fault for fault in faults)


def test_spec_faults_name_value_and_limit() -> None:
    layer = LayerSpec(-1, 20, 51)
    spec = small_spec(layers=(layer,) * (MAX_LAYERS + 1), max_length=99, pad_token_id=30, labels=("a", "a"))
    text = "\n".join(encoder_faults(spec))
    for part in ("num_heads is -1", "257 entries", "max_length is 99", "between 1 and 16", "pad_token_id is 30"):
        assert part in text
    assert "not distinct: 'a'" in text
    assert "has none" in "\n".join(encoder_faults(small_spec(task_type="embedding")))
    assert "1 to" in "\n".join(encoder_faults(small_spec(labels=())))


def test_tensor_faults_of_sound_tensors() -> None:
    for kind in LINEAR_KINDS:
        spec = small_spec(kind)
        assert tensor_faults(spec, random_tensors(spec)) == []


def test_a_head_that_reads_every_token_takes_no_nonsense() -> None:
    sound = small_spec(task_type="question_answering", labels=("start", "end"), inputs="pair", head=HeadSpec("mean"))
    assert encoder_faults(sound) == [] and sound.per_token and not small_spec().per_token
    assert encoder_from_json(sound.to_json()) == (sound, [])
    for change, said in (
        ({"labels": ("yes", "no")}, "model.labels are 'yes', 'no'; a model of task_type question_answering has start"),
        ({"inputs": "any"}, "model.inputs is 'any'; a model of task_type question_answering has 'pair'"),
        ({"task_type": "token_classification"}, "model of task_type token_classification has 'single'"),
        ({"head": HeadSpec(activation_fn="sigmoid")}, "activation_fn is 'sigmoid'"),
        ({"head": HeadSpec(function_to_apply="sigmoid")}, "function_to_apply is 'sigmoid'"),
    ):
        assert said in "\n".join(encoder_faults(dataclasses.replace(sound, **change)))
    assert "1 to" in "\n".join(encoder_faults(small_spec(task_type="token_classification", labels=(), inputs="single")))
