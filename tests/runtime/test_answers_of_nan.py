"""Models with a weight that is no number: sequences that meet it say so, and all others answer as if it were sound."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from levels import every_level_of_linears
from previewed_decoders import previewed
from random_decoders import SHAPES, InMemory, tokens
from specs import random_tensors, small_spec

from approxrt.artifact.spec.encoder import HeadSpec, ModelSpec
from approxrt.artifact.spec.formats import LINEAR_KINDS
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.runtime.cpu.engine import CpuEngine

BROKEN = 29  # the token whose embedding is NaN


@dataclasses.dataclass
class Encoder:
    spec: ModelSpec
    tensors: dict[str, np.ndarray]


def without_a_number(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    parts = (f"embeddings.word.{part}" for part in ("scale", "weight", "group_scale"))
    name = next(part for part in parts if part in tensors)
    broken = tensors[name].copy()
    broken[BROKEN] = np.nan
    return {**tensors, name: broken}


@every_level_of_linears
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", LINEAR_KINDS)
def test_encoder(isa: str, kind: str, threads: int) -> None:
    spec = small_spec(kind, head=HeadSpec(pooling="mean", dense_features=40))
    tensors = random_tensors(spec)
    ids = [[1, 2, 3], [4, BROKEN, 5, 6], [7] * 16, [8, 9, 10, 11, BROKEN], [12]]
    sound = CpuEngine(Encoder(spec, tensors), threads, isa=isa).forward(ids, None, "logits")
    logits = CpuEngine(Encoder(spec, without_a_number(tensors)), threads, isa=isa).forward(ids, None, "logits")
    assert np.isnan(logits[[1, 3]]).all()
    assert np.isfinite(sound).all()
    np.testing.assert_array_equal(logits[[0, 2, 4]], sound[[0, 2, 4]])


@every_level_of_linears
@pytest.mark.parametrize("kind", ["f32", "s8", "s4", "g4", "g8"])
def test_encoder_that_matches_signs(isa: str, kind: str) -> None:
    spec = small_spec(kind)
    layers = tuple(
        dataclasses.replace(layer, attention_keep=4, sign_from=5, attention_rest=True) for layer in spec.layers
    )
    spec = dataclasses.replace(spec, layers=layers)
    tensors = random_tensors(spec)
    ids = [list(range(16)), [BROKEN, *range(15)]]
    sound = CpuEngine(Encoder(spec, tensors), 2, isa=isa).forward(ids, None, "logits")
    logits = CpuEngine(Encoder(spec, without_a_number(tensors)), 2, isa=isa).forward(ids, None, "logits")
    assert np.isnan(logits[1]).all()
    np.testing.assert_array_equal(logits[0], sound[0])


@every_level_of_linears
@pytest.mark.parametrize("cache_kind", ["f16", "int8"])
@pytest.mark.parametrize("kind", ["f32", "s8", "bsr_s4", "g4", "g6", "g8"])
def test_decoder(isa: str, kind: str, cache_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens from the broken one on, prompts and steps alike; the other sequence of the step is as it was.

    Tokens before the broken one in the same piece of a prompt may be NaN, too: they are summed with a weight of 0 for
    its value.
    """
    spec = SHAPES["gpt"](kind)
    check_decoder(spec, random_tensors(spec), isa, cache_kind, monkeypatch)


@every_level_of_linears
def test_decoder_with_a_previewed_head(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = previewed(1.0)
    check_decoder(model.decoder_spec, model.tensors, isa, "f16", monkeypatch)


def check_decoder(
    spec: Any, tensors: dict[str, np.ndarray], isa: str, cache_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPROXRT_ISA", isa)
    ids = [token % BROKEN for token in tokens(24)]
    hers = [*ids[:11], BROKEN, *ids[12:]]
    results = []
    for weights in (tensors, without_a_number(tensors)):
        engine = DecoderEngine(InMemory(spec, weights), 2, cache_kind)
        caches = [engine.cache(32), engine.cache(32)]
        prompts = engine.step(caches, [ids, hers], True)
        later = engine.step(caches, [[3], [4]])
        results.append(np.concatenate([prompts, later]))
    sound, broken = results
    hit = np.array([False] * (24 + 11) + [True] * 13 + [False, True])
    other = np.array([True] * 24 + [False] * 24 + [True, False])
    # Where head and embeddings are one table, the broken token's own logit is NaN everywhere.
    words = np.arange(spec.vocab_size) != BROKEN
    assert np.isnan(broken[hit]).all()
    np.testing.assert_array_equal(broken[other][:, words], sound[other][:, words])
