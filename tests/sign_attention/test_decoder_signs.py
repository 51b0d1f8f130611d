"""Decoder layers that match signs: the engine against the reference, however tokens come; a spec's faults."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from levels import every_level
from matching_decoders import matching, model_of
from random_decoders import tokens
from specs import TOKENIZER_JSON, random_tensors

from approxrt.artifact.reader import read_artifact
from approxrt.artifact.spec.decoder_schema import decoder_faults, decoder_from_json
from approxrt.artifact.writer import write_artifact
from approxrt.errors import ApproxrtError
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.runtime.reference.decoder import DecoderReference

LENGTH = 230


@every_level
@pytest.mark.parametrize(("codes", "rest", "dim"), [(0, False, 16), (48, True, 16), (30, True, 10)])
def test_logits_are_the_references(isa: str, codes: int, rest: bool, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPROXRT_ISA", isa)
    model = model_of(matching("f32", codes, rest, dim))
    ids = tokens(LENGTH)
    reference = DecoderReference(model.decoder_spec, model.tensors)
    expected = reference.next_logits(ids)
    engine = DecoderEngine(model, 2, "f32")
    errors = np.abs(engine.step([engine.cache(LENGTH)], [ids], True) - expected).max(axis=1)
    close = 300 * 1.2e-7 * np.abs(expected).max()
    # An element next to 0 may have another sign in float32: then a token keeps another key, which later ones see.
    assert np.quantile(errors, 0.8) <= close
    dense = dataclasses.replace(
        model.decoder_spec,
        layers=tuple(
            dataclasses.replace(l, attention_keep=0, sign_from=0, sign_window=0, sign_codes=0, attention_rest=False)
            for l in model.decoder_spec.layers
        ),
    )
    exact = DecoderReference(dense, model.tensors).next_logits(ids)
    # Up to sign_from nothing is approximated; behind it something is.
    np.testing.assert_array_equal(expected[:79], exact[:79])
    assert np.abs(expected - exact)[100:].max() > 100 * close


@every_level
@pytest.mark.parametrize(("kind", "cache_kind", "codes"), [("s8", "f16", 48), ("f32", "int8", 0)])
def test_a_sequence_depends_on_nothing_else(
    isa: str, kind: str, cache_kind: str, codes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPROXRT_ISA", isa)
    model = model_of(matching(kind, codes, True))
    ids = tokens(LENGTH)
    engine = DecoderEngine(model, 1, cache_kind)
    expected = engine.step([engine.cache(LENGTH)], [ids], True)
    for threads in (1, 3):
        engine = DecoderEngine(model, threads, cache_kind, block_tokens=24)
        cache = engine.cache(300)
        got = [engine.step([cache], [ids[a:b]], True) for a, b in ((0, 70), (70, 75), (75, 77), (77, 140), (140, 200))]
        got += [engine.step([cache], [[token]]) for token in ids[200:]]
        np.testing.assert_array_equal(np.concatenate(got), expected)
        cache.truncate(90)
        np.testing.assert_array_equal(engine.step([cache], [ids[90:]], True), expected[90:])
        other = engine.cache(300)
        engine.step([other], [tokens(100, 9)])
        cache.truncate(150)
        both = engine.step([other, cache], [[3, 4], ids[150:160]], True)
        np.testing.assert_array_equal(both[2:], expected[150:160])


def test_an_artifact_keeps_them(tmp_path) -> None:  # type: ignore[no-untyped-def]
    spec = matching("s8", 32, True)
    tensors = random_tensors(spec, 0)
    write_artifact(tmp_path / "a", spec, tensors, TOKENIZER_JSON, {})
    artifact = read_artifact(tmp_path / "a")
    assert artifact.decoder_spec == spec
    name = "layers.0.attention.sign.rotation"
    np.testing.assert_array_equal(artifact.tensors[name], tensors[name])
    with pytest.raises(ApproxrtError, match=r"sign\.centre"):
        write_artifact(
            tmp_path / "b", spec, {k: v for k, v in tensors.items() if not k.endswith("centre")}, TOKENIZER_JSON, {}
        )


@pytest.mark.parametrize(("changes", "words"), [
    ({"attention_keep": 0}, "must be 0 where attention_keep is 0"),
    ({"attention_keep": -1}, "attention_keep is -1"),
    ({"sign_from": 12}, "sign_from is 12; it must be between 64"),
    ({"sign_window": 0}, "sign_window is 0"),
    ({"sign_codes": 249}, "sign_codes is 249; it must be between 0 and 248"),
    ({"sign_codes": 0, "head_dim": 250}, "must be at most 248"),
    ({"attention_keep": "12"}, "attention_keep is '12'; an integer is needed"),
    ({"attention_rest": 1}, "attention_rest is 1; true or false is needed"),
    ({"num_heads": 0, "num_kv_heads": 0}, "must be 0 in a removed block"),
])  # fmt: skip
def test_faults_are_named(changes: dict, words: str) -> None:
    spec = matching("s8", 32, True)
    assert decoder_faults(spec) == []
    layers = (dataclasses.replace(spec.layers[0], **changes), *spec.layers[1:])
    assert any(words in fault for fault in decoder_faults(dataclasses.replace(spec, layers=layers)))


def test_json_brings_them_back() -> None:
    spec = matching("f32", 48, False)
    assert decoder_from_json(spec.to_json()) == (spec, [])
