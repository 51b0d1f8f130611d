"""Python threads that share one engine, of every road through the code: each gets the answers that it gets alone.

Torch is not needed, so that a ThreadSanitizer build (`make tsan`) runs these, too.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import numpy as np
import pytest
from matching_decoders import matching, model_of
from previewed_decoders import previewed
from random_decoders import build, tokens
from specs import random_tensors, small_spec

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.runtime.cpu.engine import CpuEngine

CALLERS, ROUNDS = 5, 3  # callers: more than a pool of three lets in at once

Call = Callable[[int], np.ndarray]


@dataclasses.dataclass
class Encoder:
    spec: ModelSpec
    tensors: dict[str, np.ndarray]


def encoder(spec: ModelSpec, threads: int) -> Call:
    engine = CpuEngine(Encoder(spec, random_tensors(spec)), threads)
    batches = []
    for caller in range(CALLERS):
        rng = np.random.default_rng(caller)
        batches.append([rng.integers(0, 30, n).tolist() for n in rng.integers(1, 17, 2 + 3 * caller)])
    return lambda caller: engine.forward(batches[caller], None, "logits")


def encoder_of(kind: str) -> Callable[[int], Call]:
    return lambda threads: encoder(small_spec(kind, hidden=64), threads)


def encoder_by_signs(threads: int) -> Call:
    spec = small_spec("s8", hidden=64)
    layers = tuple(
        dataclasses.replace(layer, attention_keep=3, sign_from=4, attention_rest=True) for layer in spec.layers
    )
    return encoder(dataclasses.replace(spec, layers=layers), threads)


def decoder(engine: DecoderEngine, prompt: int) -> Call:
    """A prompt in two pieces, steps of one token, and one of two sequences, in caches of the caller's own."""

    def call(caller: int) -> np.ndarray:
        ids = tokens(prompt + caller, caller)
        cache, other = engine.cache(prompt + 16), engine.cache(16)
        rows = [engine.step([cache], [ids[:5]], True), engine.step([cache], [ids[5:]], True)]
        rows += [engine.step([cache], [[token]]) for token in ids[:4]]
        rows.append(engine.step([other, cache], [ids[:3], [caller]], True))
        return np.concatenate(rows)

    return call


def decoder_of(shape: str, kind: str, cache_kind: str) -> Callable[[int], Call]:
    return lambda threads: decoder(DecoderEngine(build(shape, kind), threads, cache_kind), 24)


def decoder_with_a_preview(threads: int) -> Call:
    return decoder(DecoderEngine(previewed(1.0), threads), 24)


def decoder_by_signs(threads: int) -> Call:
    return decoder(DecoderEngine(model_of(matching("s8", 48, True)), threads, "f16"), 110)


ENGINES = {
    **{f"encoder, {kind}": encoder_of(kind) for kind in ("f32", "bsr_s8", "bsr_s4", "g4", "g6")},
    "encoder, signs": encoder_by_signs,
    "decoder, s8": decoder_of("wide", "s8", "int8"),
    "decoder, g4": decoder_of("llama", "g4", "f16"),
    "decoder, bsr_s4 with a transform": decoder_of("spread", "bsr_s4", "f32"),
    "decoder, preview": decoder_with_a_preview,
    "decoder, signs": decoder_by_signs,
}


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("name", ENGINES)
def test_callers_get_their_own_answers(name: str, threads: int) -> None:
    alone = ENGINES[name](1)
    expected = [alone(caller) for caller in range(CALLERS)]
    call = ENGINES[name](threads)
    together = threading.Barrier(CALLERS)
    right: list[int] = []

    def ask(caller: int) -> None:
        together.wait(60)
        for _ in range(ROUNDS):
            if np.array_equal(call(caller), expected[caller]):
                right.append(caller)

    callers = [threading.Thread(target=ask, args=(caller,), daemon=True) for caller in range(CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(120)
    assert sorted(right) == sorted(list(range(CALLERS)) * ROUNDS)
