"""Sign matching for a decoder with long texts: in which layers, from how many keys on, and what it brings.

1. Kernels are timed: `sign_from` is the number of keys from which matching signs is faster than attending to all.
2. Codes are fitted to the beginning of the text (`approxrt.sign_attention.codes`).
3. All layers match signs; while the perplexity of the text's end rises by more than allowed, those whose kept keys
   hold the least of exact attention's weight go back to it.
4. Tokens a second at a full context, in turns with the artifact as it was.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from approxrt._C import kernels
from approxrt.artifact.memory import InMemory
from approxrt.artifact.reader import read_artifact
from approxrt.artifact.spec.decoder import SUM_BLOCK, DecoderSpec
from approxrt.artifact.writer import check_target, write_artifact
from approxrt.errors import DataError, InputError
from approxrt.progress import Progress
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.runtime.cpu.engine import forced_isa
from approxrt.sign_attention.codes import Codes, Kept, codes_for, fit_codes, with_codes
from approxrt.sign_attention.codes import dense as dense_decoder
from approxrt.sign_attention.search import break_even
from approxrt.tasks.lm import engine_score, perplexity
from approxrt.tasks.text import text_file, token_ids
from approxrt.torch_models.decoder import TorchDecoder

KEEP, WINDOW, CONTEXT = 128, 32, 2560
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
TEXTS = 2  # that codes are fitted to, a context each
VALIDATED = 3  # windows of the text's end
ROUNDS, STEPS = 5, 32  # of tokens that are timed
Log = Callable[[str], None]


@dataclass(frozen=True)
class SignReport:
    """The result of `match_signs`.

    layers       that match signs; met is false where there are none
    dense, chosen  {perplexity, tokens_per_second} at `context` tokens, before and after
    sign_from    keys from which a query matches signs
    held         by layer, the share of exact attention's weight that kept keys hold
    kernel_ms    tokens in the cache -> [exact, matched] milliseconds of one key-value head and its queries
    """

    artifact: str
    met: bool
    shortfalls: tuple[str, ...]
    layers: tuple[int, ...]
    keep: int
    window: int
    codes: int
    sign_from: int
    context: int
    dense: dict[str, float]
    chosen: dict[str, float]
    held: dict[int, float]
    kernel_ms: dict[int, tuple[float, float]]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return dataclasses.asdict(self)


def match_signs(
    artifact: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    keep: int = KEEP,
    window: int = WINDOW,
    context: int | None = None,
    max_drop: float = 0.01,
    threads: int | None = None,
    overwrite: bool = False,
    log: Log | None = None,
) -> SignReport:
    """Let a decoder's artifact attend by matching signs, where that pays and is harmless, and write it to `out`.

    data      a plain text (.txt), or a folder with a train file: its beginning calibrates, its end validates
    keep      keys of its choice that a query attends to; the first and the last `window` come on top
    context   tokens that the model is used with; None: 2560, or as many as it has positions
    max_drop  largest relative rise of perplexity at that context

    Where it does not pay, or every layer would do harm, nothing is written and the report says why. Raises InputError,
    DataError for a text that is too short, ArtifactError.
    """
    say, started, target = log or (lambda _: None), time.monotonic(), Path(out)
    check_target(target, overwrite)
    source = read_artifact(artifact)
    spec, tensors = source.decoder_spec, source.tensors
    context = _checked(spec, keep, window, context, max_drop)
    calibrating, validating = _divided(token_ids(source.tokenizer_json, text_file(data)), context)

    def rise(built: InMemory) -> float:
        engine = DecoderEngine(built, threads)
        return float(perplexity(engine_score(engine), validating, context, max(1, context // 5))["perplexity"])

    timed = time_kernels(spec, keep, window, context)
    start = starting_from(timed, keep)
    dense = {"perplexity": rise(InMemory(spec, tensors))}
    say(f"exact attention: perplexity {dense['perplexity']:.3f} at {context} tokens")
    kept, chosen, codes = Kept(keep, window), dict(dense), dict[int, Codes]()
    held: dict[int, float] = {}
    if start is not None and start < context:
        exact = TorchDecoder(*dense_decoder(spec, tensors))
        codes = fit_codes(exact, calibrating, kept, progress=Progress(lambda share, text: say(text)))
        held = {i: found.held for i, found in codes.items()}
    built = InMemory(spec, tensors)
    while codes:
        assert start is not None
        built = InMemory(*with_codes(spec, tensors, codes, kept, start))
        chosen["perplexity"] = rise(built)
        change = chosen["perplexity"] / dense["perplexity"] - 1
        say(f"{len(codes)} layers match signs: perplexity {chosen['perplexity']:.3f} ({100 * change:+.2f} %)")
        if change <= max_drop:
            break
        worst = sorted(codes, key=lambda i: codes[i].held)[: max(1, len(codes) // 6)]
        codes = {i: found for i, found in codes.items() if i not in worst}
    shortfalls = []
    if start is None or start >= context:
        shortfalls.append(f"matching signs is not faster than exact attention here up to {context} tokens")
    elif not codes:
        shortfalls.append(f"no layer can match signs within {100 * max_drop:.2f} % of perplexity")
    else:
        rates = _rates((InMemory(spec, tensors), built), context, threads)
        dense["tokens_per_second"], chosen["tokens_per_second"] = rates
        say(f"{rates[0]:.1f} -> {rates[1]:.1f} tokens/s at {context} tokens")
        if rates[1] <= rates[0]:
            shortfalls.append(f"{rates[1] / rates[0]:.2f}x the tokens a second at {context} tokens: it does not pay")
    widest = max((layer.head_dim for layer in spec.layers if layer.has_attention), default=0)
    report = SignReport(
        str(target), not shortfalls, tuple(shortfalls), tuple(sorted(codes)), keep, window,
        codes_for(widest) if widest else 0, start or 0, context, dense, chosen, held, timed,
        round(time.monotonic() - started, 1),
    )  # fmt: skip
    if report.met:
        card = source.card | {"sign_matching": {k: v for k, v in report.to_json().items() if k != "artifact"}}
        write_artifact(target, built.decoder_spec, built.tensors, source.tokenizer_json, card, overwrite)
    return report


def time_kernels(spec: DecoderSpec, keep: int, window: int, most: int) -> dict[int, tuple[float, float]]:
    """Milliseconds of one key-value head with one token's queries, exact and matched, by tokens in an f16 cache."""
    layer = next((layer for layer in spec.layers if layer.has_attention), None)
    if layer is None:
        return {}
    rng, dim, isa = np.random.default_rng(0), layer.head_dim, forced_isa()
    codes, group = codes_for(dim), layer.num_heads // layer.num_kv_heads
    found = {}
    for n in LENGTHS:
        if n > most or n <= max(keep, SUM_BLOCK):
            continue
        cache = kernels.Cache(n, dim, "f16")
        rotation = rng.standard_normal((codes, dim)).astype(np.float32) if codes else None
        cache.match_signs(rotation, None if rotation is None else np.zeros(codes, np.float32), True)
        keys, values = rng.standard_normal((2, n, dim)).astype(np.float32)
        cache.write(keys, values, 0, isa)
        cache.index(0, n, isa)
        q = rng.standard_normal((1, group, dim)).astype(np.float32)
        runs = (
            lambda c=cache, q=q, n=n: c.attention(q, n - 1, 0.1, isa),
            lambda c=cache, q=q, n=n: (c.index(n - 1, n, isa), c.sign_attention(q, n - 1, 0.1, keep, window, isa)),
        )
        times: tuple[list[float], list[float]] = [], []
        for _ in range(40):
            for run, own in zip(runs, times, strict=True):
                begin = time.perf_counter()
                run()
                own.append(1e3 * (time.perf_counter() - begin))
        found[n] = float(np.median(times[0])), float(np.median(times[1]))
    return found


def starting_from(timed: Mapping[int, tuple[float, float]], keep: int) -> int | None:
    """Return the keys from which matching signs is faster at every length that was timed; None if it never is."""
    exact, matched = ({n: times[i] for n, times in timed.items()} for i in (0, 1))
    start = break_even(exact, matched, 0)
    return None if start is None else max(start, keep + 1, SUM_BLOCK)


def _rates(models: tuple[InMemory, InMemory], context: int, threads: int | None) -> tuple[float, float]:
    """Tokens a second with `context` tokens in the cache, in turns."""
    engines = [DecoderEngine(model, threads) for model in models]
    ids = np.random.default_rng(0).integers(0, engines[0].spec.vocab_size, context).tolist()
    caches = [engine.cache(context) for engine in engines]
    prompt = context - STEPS
    for engine, cache in zip(engines, caches, strict=True):
        engine.prefill(cache, ids[:prompt])
    rates = []
    for _ in range(ROUNDS):
        round_ = []
        for engine, cache in zip(engines, caches, strict=True):
            cache.truncate(prompt)
            begin = time.perf_counter()
            for token in ids[prompt:]:
                engine.step([cache], [[token]])
            round_.append(STEPS / (time.perf_counter() - begin))
        rates.append(round_)
    first, second = np.median(rates, axis=0)
    return float(first), float(second)


def _checked(spec: DecoderSpec, keep: int, window: int, context: int | None, max_drop: float) -> int:
    """The context, after all numbers are looked at."""
    if not 0 < max_drop < 1:
        raise InputError(f"max_drop is {max_drop!r}; it must be between 0 and 1 (0.01 for one per cent)")
    for name, value in (("keep", keep), ("window", window)):
        if type(value) is not int or value < 1:
            raise InputError(f"{name} is {value!r}; it must be an integer of at least 1")
    if context is None:
        context = min(CONTEXT, spec.max_positions)
    low = max(2 * keep, 4 * SUM_BLOCK)
    if type(context) is not int or not low <= context <= spec.max_positions:
        raise InputError(
            f"context is {context!r}; it must be an integer from {low} (twice keep) to the model's "
            f"{spec.max_positions} positions"
        )
    return context


def _divided(ids: list[int], context: int) -> tuple[list[list[int]], list[int]]:
    """Return (texts to calibrate with, tokens to validate with): the last quarter, or a context, validates."""
    cut = len(ids) - max(len(ids) // 4, context)
    if cut < context:
        raise DataError(
            f"the text has {len(ids)} tokens; {2 * context} are needed: a context of {context} to calibrate, and one "
            "to validate"
        )
    texts = min(TEXTS, cut // context)
    starts = np.linspace(0, cut - context, texts).astype(int)
    # Windows move by a fifth of a context.
    end = cut + context + (VALIDATED - 1) * (context // 5)
    return [ids[s : s + context] for s in starts], ids[cut:end]
