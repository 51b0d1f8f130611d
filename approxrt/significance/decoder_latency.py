"""Seconds a token that linears of each kind take in a decoder's steps, measured on this machine with its own kernels.

Models of the decoder's sizes with random integers are timed in turns, one for each kind, and one without any layer for
what is left, most of it the head. One token after the other reads all weights, so that what differs is dealt out by
bytes; a layer's share of norms and attention goes with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from approxrt.artifact.memory import InMemory
from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.artifact.spec.formats import LinearSpec
from approxrt.planning.decoder_options import HEAD
from approxrt.quantization.scheme import Scheme
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.significance.probes import random_linear
from approxrt.significance.workload import Run, take_turns

PROMPT, STEPS = 64, 16
SECONDS = 4.0
# Layers of models that are only timed: as many as it takes to be read from memory, not from a cache.
TIMED_BYTES = 96 << 20


@dataclass(frozen=True)
class DecoderLatency:
    """`per_byte` by kind, of linears in layers; `head` by kind, with all that does not depend on layers."""

    per_byte: dict[Scheme, float]
    head: dict[Scheme, float]

    def ms(self, name: str, linear: LinearSpec, scheme: Scheme) -> float:
        """Return the milliseconds a token of one linear in one scheme."""
        if name == HEAD:
            return 1e3 * self.head[scheme]
        return 1e3 * self.per_byte[scheme] * scheme.bytes(linear.out_features, linear.in_features)


def decode_run(
    engine: DecoderEngine, text: Sequence[int] | None = None, prompt: int = PROMPT, steps: int = STEPS
) -> Run:
    """A function that appends `steps` tokens, one by one, to a text of `prompt` (less where positions are few).

    text   the ids, where they matter: a previewed head refines more words of what is no text. Default: random
    """
    steps = min(steps, max(1, engine.spec.max_positions // 2))
    prompt = max(1, min(prompt, engine.spec.max_positions - steps))
    ids = list(text or [])[: prompt + steps]
    if len(ids) < prompt + steps:
        ids = np.random.default_rng(0).integers(0, engine.spec.vocab_size, prompt + steps).tolist()
    cache = engine.cache(prompt + steps)
    engine.prefill(cache, ids[:prompt])

    def run() -> None:
        cache.truncate(prompt)
        for token in ids[prompt:]:
            engine.step([cache], [[token]])

    return run


def steps_of(spec: DecoderSpec, steps: int = STEPS) -> int:
    """Return how many tokens `decode_run` appends."""
    return min(steps, max(1, spec.max_positions // 2))


def measure_latency(
    spec: DecoderSpec,
    kinds: Sequence[Scheme],
    heads: Sequence[Scheme],
    threads: int | None,
    progress: Callable[[str], None] | None = None,
) -> DecoderLatency:
    """See the module's text: `kinds` of layers, `heads` of heads; `SECONDS` of timing in all."""
    size = sum(linear.out_features * linear.in_features for name, linear in spec.linears() if name != HEAD)
    count = len(spec.layers) if size <= TIMED_BYTES else max(1, round(len(spec.layers) * TIMED_BYTES / size))
    part = dataclasses.replace(spec, layers=spec.layers[:count])
    runs: dict[str, Run] = {}
    sizes = {}
    for kind in kinds:
        if progress:
            progress(f"timing {kind.name}")
        model = random_decoder(part, kind, heads[0])
        sizes[kind] = sum(
            kind.bytes(linear.out_features, linear.in_features) for name, linear in part.linears() if name != HEAD
        )
        runs[kind.name] = decode_run(DecoderEngine(model, threads))
    no_layers = dataclasses.replace(spec, layers=(_emptied(spec.layers[0]),))
    for kind in heads:
        runs[f"head {kind.name}"] = decode_run(DecoderEngine(random_decoder(no_layers, kind, kind), threads))
    times = take_turns(runs, SECONDS, least_rounds=3)
    each = {name: time.median_ms / 1e3 / steps_of(spec) for name, time in times.items()}
    head = {kind: each[f"head {kind.name}"] for kind in heads}
    layers = {kind: max(each[kind.name] - head[heads[0]], 1e-9) for kind in kinds}
    return DecoderLatency({kind: layers[kind] / max(1, sizes[kind]) for kind in kinds}, head)


def _emptied(layer: Any) -> Any:
    none = dict.fromkeys(("query", "key", "value", "attention_output", "ffn_gate", "ffn_up", "ffn_down"), "f32")
    return dataclasses.replace(layer, num_heads=0, num_kv_heads=0, intermediate_size=0, **none)


def random_decoder(spec: DecoderSpec, kind: Scheme, head: Scheme) -> InMemory:
    """All linears of layers in one kind with random integers; embeddings int8."""
    rng = np.random.default_rng(0)
    kinds, parts = {}, {}
    for name, linear in spec.linears():
        chosen = head if name == HEAD else kind
        kinds[name] = chosen.stored
        for part, array in random_linear(linear.out_features, linear.in_features, chosen, rng).items():
            parts[f"{name}.{part}"] = array
    spec = dataclasses.replace(spec.with_linear_kinds(kinds), embedding_kind="s8")
    for name, dtype, shape in spec.dense_tensors():
        if name in parts:
            continue
        if dtype == "I8":
            parts[name] = rng.integers(-127, 128, shape, np.int8)
        else:
            parts[name] = np.full(shape, 0.01, np.float32)
    return InMemory(spec, parts)
