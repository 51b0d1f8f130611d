"""The decoder engine: logits against the reference on every level, independence of batch, steps and threads."""

from __future__ import annotations

import numpy as np
import pytest
from levels import every_level_of_linears
from random_decoders import SHAPES, build, tokens

from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.runtime.reference.decoder import DecoderReference

KINDS = ("f32", "s8", "bsr_s8", "s4", "bsr_s4", "g4", "g6", "g8")


@every_level_of_linears
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_references(isa: str, shape: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPROXRT_ISA", isa)
    model = build(shape, kind)
    ids = tokens(40)
    expected = DecoderReference(model.decoder_spec, model.tensors).next_logits(ids)
    engine = DecoderEngine(model, 2, "f32")
    errors = np.abs(engine.step([engine.cache(40)], [ids], True) - expected)
    # float32 against float64, some 300 roundings deep at most; logits are of the order of 1.
    close = 300 * 1.2e-7 * np.abs(expected).max()
    if kind == "f32":
        assert errors.max() <= close
    else:
        # The reference's float64 may lie on the other side of a rounding boundary than the engine's float32: one step
        # of one activation then differs, in few tokens, and by no more than a hundredth of the logits.
        assert np.quantile(errors.max(axis=1), 0.5) <= close
        assert errors.max() <= 0.05 * np.abs(expected).max()


@every_level_of_linears
@pytest.mark.parametrize("kind", ["f32", "s8", "bsr_s4", "s4", "g4", "g8"])
@pytest.mark.parametrize("shape, cache_kind", [("wide", "f32"), ("wide", "int8"), ("spread", "f16")])
def test_a_sequence_depends_on_nothing_else(
    isa: str, kind: str, shape: str, cache_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on how its tokens come, nor on the batch, nor on threads."""
    monkeypatch.setenv("APPROXRT_ISA", isa)
    model = build(shape, kind)
    ids = tokens(50)
    engine = DecoderEngine(model, 1, cache_kind)
    expected = engine.step([engine.cache(50)], [ids], True)
    for threads in (1, 2, 3):
        engine = DecoderEngine(model, threads, cache_kind, block_tokens=24)
        one_by_one = engine.cache(50)
        rows = [engine.step([one_by_one], [[token]])[0] for token in ids]
        np.testing.assert_array_equal(np.stack(rows), expected)
        pieces, cache = [], engine.cache(50)
        for begin, end in ((0, 3), (3, 30), (30, 38), (38, 50)):
            pieces.append(engine.step([cache], [ids[begin:end]], True))
        np.testing.assert_array_equal(np.concatenate(pieces), expected)
        others = [tokens(n, n) for n in (1, 31, 4)]
        caches = [engine.cache(64) for _ in range(4)]
        batch = engine.step(caches, [others[0], ids[:20], others[1], others[2]])
        np.testing.assert_array_equal(batch[1], expected[19])
        batch = engine.step(caches, [[5], [ids[20]], [6], [7]])
        np.testing.assert_array_equal(batch[1], expected[20])
        batch = engine.step(caches, [[5], ids[21:], [6], [7]], True)
        np.testing.assert_array_equal(batch[1 : 1 + 29], expected[21:])


def test_truncate_forgets() -> None:
    model = build("llama", "s8")
    engine = DecoderEngine(model, 2)
    cache = engine.cache(20)
    ids = tokens(12)
    expected = engine.step([cache], [ids], True)
    cache.truncate(5)
    assert cache.length == 5
    np.testing.assert_array_equal(engine.step([cache], [ids[5:]], True), expected[5:])
    with pytest.raises(ValueError, match="cannot keep 13 of 12"):
        cache.truncate(13)


def test_int8_cache_is_smaller_and_close() -> None:
    model = build("llama", "s8")
    ids = tokens(30)
    results, sizes = [], []
    for kind in ("f32", "f16", "int8"):
        engine = DecoderEngine(model, 2, kind)
        cache = engine.cache(64)
        sizes.append(cache.bytes)
        results.append(engine.step([cache], [ids], True))
    assert sizes[0] > sizes[1] > sizes[2]
    # 11 bits, and 7 bits with a scale a token, of values that a softmax averages.
    assert np.abs(results[1] - results[0]).mean() < 0.01 * np.abs(results[0]).mean()
    assert np.abs(results[2] - results[0]).mean() < 0.05 * np.abs(results[0]).mean()


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([[]], "no new tokens"),
        ([[70]], r"token id 70 is outside the vocabulary \(0 to 69\)"),
        ([[-1]], "token id -1"),
        ([[1] * 9], "room for 8"),
    ],
)
def test_bad_steps_are_refused(runs: list[list[int]], message: str) -> None:
    engine = DecoderEngine(build("llama", "s8"), 1)
    cache = engine.cache(8)
    with pytest.raises(ValueError, match=message):
        engine.step([cache], runs)
    assert cache.length == 0
    with pytest.raises(ValueError, match="positions for 1 to 64"):
        engine.cache(65)
    with pytest.raises(ValueError, match="given twice"):
        engine.step([cache, cache], [[1], [2]])
    assert engine.step([cache], [[1]]).shape == (1, 70)


def test_profile_names_its_operators() -> None:
    engine = DecoderEngine(build("llama", "s8"), 2)
    cache = engine.cache(40)
    with engine.profiling() as profile:
        engine.step([cache], [tokens(20)])
        engine.step([cache], [[1]])
    assert profile["passes"] == 2
    ops = {op["op"] for op in profile["ops"]}
    assert {"attention", "query, key, value", "ffn down", "head", "rope, cache"} <= ops
