"""`compress` for decoders: which linears become int4 and which int8, by what each costs and brings.

A decoder that writes one token after the other reads every weight for each, so its time follows the bytes of its
weights; and a linear's rounding costs what `approxrt.approx.decoder_round.predicted_loss` says. The plan takes linears
into int4 in the order of loss a byte saved, as far as the limits go:

  - with `speedup`, just enough for the time, on the line through the measured times of all-int8 and all-int4;
  - else as many as `max_drop` allows, the relative increase of perplexity on validation text.

The plan is built (rotated, rounded by calibration text), its perplexity and tokens a second are measured, and
with what was learnt of the prediction's scale it is built again if there is something to gain.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from approxrt import __version__
from approxrt.approx.decoder_round import (
    Statistics,
    calibration,
    predicted_loss,
    round_decoder,
    statistics,
)
from approxrt.approx.gptq import dequantized_linear
from approxrt.approx.quantize import quantize_linear, quantize_rows
from approxrt.approx.rotate import can_rotate, rotate
from approxrt.artifact.decoder_spec import DecoderSpec
from approxrt.artifact.writer import check_target, write_artifact
from approxrt.errors import DataError, InputError
from approxrt.models.decoder import load_any_decoder
from approxrt.runtime.decoder_cpu import DecoderEngine
from approxrt.tasks.lm import engine_score, perplexity, read_text
from approxrt.tasks.readers import TEXT_SUFFIXES, find_split

Tensors = dict[str, np.ndarray]
Log = Callable[[str], None]

SEQUENCE = 512  # tokens of a piece of calibration text, and of a window of validation text, which moves by half of it
STATISTICS_SEQUENCES, ROUNDING_SEQUENCES = 6, 12
VALIDATION_TOKENS = 8192
# What rounding by calibration text leaves of a plain rounding's loss, before it is measured.
FIRST_GUESS = 0.4
TRIES = 3


@dataclass(frozen=True)
class LmReport:
    """The result of `approxrt.compress` for a decoder; `met` and `shortfalls` as in `Report`.

    dense, chosen  {perplexity, tokens_per_second, bytes} of float32 in our engine and of the artifact; perplexities are
                   those of the validation text
    plan           bits by linear
    tried          every plan that was built: {int4 (share of weights), perplexity, tokens_per_second, bytes}
    """

    artifact: str
    met: bool
    shortfalls: tuple[str, ...]
    dense: dict[str, float]
    chosen: dict[str, float]
    plan: dict[str, int]
    tried: tuple[dict[str, float], ...]
    notes: tuple[str, ...]
    seconds: float
    task: str = "lm"

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class _Built:
    """A model in memory, as the engine takes it."""

    decoder_spec: DecoderSpec
    tensors: Mapping[str, np.ndarray]


def compress_lm(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    max_drop: float = 0.01,
    speedup: float | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    log: Log | None = None,
) -> LmReport:
    """Quantise a decoder by calibration text, int4 where it costs least, and write the artifact `out`.

    data      a plain text (.txt), or a folder with a train file: its beginning calibrates, its end validates
    max_drop  largest relative increase of validation perplexity over float32
    speedup   times the tokens a second of our own float32 engine; None: as fast as max_drop allows

    Raises InputError, DataError for a text that is too short, and what reading the checkpoint raises.
    """
    say = log or (lambda _: None)
    if not 0 < max_drop < 1:
        raise InputError(f"max_drop is {max_drop!r}; it must be between 0 and 1 (0.01 for one per cent)")
    if speedup is not None and not speedup > 0:
        raise InputError(f"speedup is {speedup!r}; it must be over 0")
    target, started = Path(out), time.monotonic()
    check_target(target, overwrite)
    checkpoint = load_any_decoder(model)
    spec, tensors = checkpoint.spec, dict(checkpoint.tensors)
    sequence = min(SEQUENCE, spec.max_positions)
    calibrating, validating = _split(token_ids(checkpoint.tokenizer_json, text_file(data)), sequence)

    def measure(built: _Built) -> dict[str, float]:
        engine = DecoderEngine(built, threads)
        found = perplexity(engine_score(engine), validating, sequence, sequence // 2)
        return {
            "perplexity": found["perplexity"],
            "tokens_per_second": decode_rate(engine),
            "bytes": float(sum(array.nbytes for array in built.tensors.values())),
        }

    dense = measure(_Built(spec, tensors))
    say(f"float32: perplexity {dense['perplexity']:.3f}, {dense['tokens_per_second']:.1f} tokens/s")
    notes = []
    if can_rotate(spec):
        spec, tensors = rotate(spec, tensors)
    else:
        notes.append("layer norms: activations are not rotated, so their outliers cost some accuracy")
    stats = statistics(spec, tensors, calibration(calibrating, STATISTICS_SEQUENCES, sequence), say)
    prices = _prices(spec, tensors, stats)
    batch = calibration(calibrating, ROUNDING_SEQUENCES, sequence)
    allowed = math.log1p(max_drop)
    count = None if speedup is None else _count_for_time(spec, tensors, prices, dense, speedup, threads, say)

    scale, best, tried = FIRST_GUESS, None, []
    built: dict[int, tuple[_Built, dict[str, float], dict[str, int]]] = {}
    for _ in range(1 if count is not None else TRIES):
        chosen = count if count is not None else prices.within(allowed, scale)
        if chosen in built:
            break
        plan = prices.plan(chosen)
        rounded = _Built(*_with_int8_words(*round_decoder(spec, tensors, batch, plan)))
        found = measure(rounded)
        loss = math.log(found["perplexity"] / dense["perplexity"])
        share = prices.share(chosen)
        tried.append({"int4": share, "loss": loss, **found})
        say(
            f"{100 * share:.0f} % int4: perplexity {found['perplexity']:.3f} ({100 * math.expm1(loss):+.2f} %), "
            f"{found['tokens_per_second']:.1f} tokens/s"
        )
        built[chosen] = (rounded, found, plan)
        fits = loss <= allowed
        if best is None or _better(built[chosen][1], built[best][1], dense, allowed):
            best = chosen
        # What was measured beside what was predicted; all of it may be due to activations, so never below a tenth.
        scale = max(0.1, loss / prices.loss(chosen)) if loss > 0 else scale / 2
        if fits and loss > 0.7 * allowed:
            break
    assert best is not None
    rounded, found, plan = built[best]
    shortfalls = []
    if found["perplexity"] > dense["perplexity"] * (1 + max_drop):
        rise = 100 * (found["perplexity"] / dense["perplexity"] - 1)
        shortfalls.append(f"perplexity on validation rises by {rise:.2f} %; {100 * max_drop:.2f} % was allowed")
    if speedup is not None and found["tokens_per_second"] < 0.97 * speedup * dense["tokens_per_second"]:
        ratio = found["tokens_per_second"] / dense["tokens_per_second"]
        shortfalls.append(f"{ratio:.2f}x the tokens a second of float32; {speedup:g}x was asked")
    report = LmReport(
        str(target), not shortfalls, tuple(shortfalls), dense, found, plan, tuple(tried), tuple(notes),
        round(time.monotonic() - started, 1),
    )  # fmt: skip
    write_artifact(
        target, rounded.decoder_spec, rounded.tensors, checkpoint.tokenizer_json, _card(checkpoint.source, report),
        overwrite,
    )  # fmt: skip
    return report


def decode_rate(engine: DecoderEngine, prompt: int = 64, new: int = 48, rounds: int = 3) -> float:
    """Tokens a second of one sequence, one token a step: the median of some rounds."""
    ids = np.random.default_rng(0).integers(0, engine.spec.vocab_size, prompt + new).tolist()
    rates = []
    for _ in range(rounds):
        cache = engine.cache(min(prompt + new, engine.spec.max_positions))
        engine.prefill(cache, ids[: cache.capacity - min(new, cache.capacity - 1)])
        steps, begin = cache.capacity - cache.length, time.perf_counter()
        for token in ids[:steps]:
            engine.step([cache], [[token]])
        rates.append(steps / (time.perf_counter() - begin))
    return float(np.median(rates))


@dataclass(frozen=True)
class _Prices:
    """By linear, cheapest first: what int4 costs (nats) over int8, and the bytes it saves."""

    names: tuple[str, ...]
    losses: tuple[float, ...]
    saved: tuple[int, ...]
    base: float  # nats of all-int8

    def plan(self, count: int) -> dict[str, int]:
        return {name: 4 if i < count else 8 for i, name in enumerate(self.names)}

    def loss(self, count: int) -> float:
        return self.base + sum(self.losses[:count])

    def within(self, allowed: float, scale: float) -> int:
        """The most linears whose predicted loss, scaled, is allowed."""
        count = 0
        while count < len(self.names) and scale * self.loss(count + 1) <= allowed:
            count += 1
        return count

    def share(self, count: int) -> float:
        return sum(self.saved[:count]) / sum(self.saved)


def _prices(spec: DecoderSpec, tensors: Tensors, stats: Mapping[str, Statistics]) -> _Prices:
    entries, base = [], 0.0
    for name, linear in spec.linears():
        if name not in stats:
            continue
        weight, n, k = tensors[f"{name}.weight"], linear.out_features, linear.in_features
        losses, sizes = [], []
        for bits in (8, 4):
            _, parts = quantize_linear(weight, bits)
            losses.append(predicted_loss(dequantized_linear(parts, n, k) - weight, stats[name]))
            sizes.append(sum(array.nbytes for array in parts.values()))
        base += losses[0]
        entries.append((max(losses[1] - losses[0], 0.0), sizes[0] - sizes[1], name))
    entries.sort(key=lambda e: e[0] / e[1])
    return _Prices(tuple(e[2] for e in entries), tuple(e[0] for e in entries), tuple(e[1] for e in entries), base)


def _count_for_time(
    spec: DecoderSpec,
    tensors: Tensors,
    prices: _Prices,
    dense: Mapping[str, float],
    speedup: float,
    threads: int | None,
    say: Log,
) -> int:
    """The fewest int4 linears that reach the speedup, on the line through two measured plans."""
    seconds = []
    for count in (0, len(prices.names)):
        quantized, kinds = dict(tensors), {}
        for name, bits in prices.plan(count).items():
            kinds[name], parts = quantize_linear(quantized.pop(f"{name}.weight"), bits)
            quantized |= {f"{name}.{part}": array for part, array in parts.items()}
        seconds.append(1 / decode_rate(DecoderEngine(_Built(spec.with_linear_kinds(kinds), quantized), threads)))
    say(f"int8 {1 / seconds[0]:.1f} tokens/s, int4 {1 / seconds[1]:.1f} tokens/s")
    wanted = 1 / (speedup * dense["tokens_per_second"])
    for count in range(len(prices.names) + 1):
        if seconds[0] + prices.share(count) * (seconds[1] - seconds[0]) <= wanted:
            return count
    return len(prices.names)


def _better(new: Mapping[str, float], old: Mapping[str, float], dense: Mapping[str, float], allowed: float) -> bool:
    """Within the limit, fewer bytes; else a lower perplexity."""
    limit = dense["perplexity"] * math.exp(allowed)
    if (new["perplexity"] <= limit) != (old["perplexity"] <= limit):
        return new["perplexity"] <= limit
    if new["perplexity"] <= limit:
        return new["bytes"] < old["bytes"]
    return new["perplexity"] < old["perplexity"]


def _with_int8_words(spec: DecoderSpec, tensors: Tensors) -> tuple[DecoderSpec, Tensors]:
    out = dict(tensors)
    q, scale = quantize_rows(out.pop("embeddings.word.weight"))
    out |= {"embeddings.word.q": q, "embeddings.word.scale": scale}
    return dataclasses.replace(spec, embedding_kind="s8"), out


def text_file(data: str | os.PathLike[str]) -> Path:
    path = Path(data)
    if not path.is_dir():
        return path
    found = find_split(path, "train", TEXT_SUFFIXES)
    if found is None:
        raise DataError(f"{path} has no train{'|'.join(TEXT_SUFFIXES)}: give a folder with one, or the file itself")
    return found


def token_ids(tokenizer_json: bytes, path: Path) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_str(tokenizer_json.decode("utf-8")).encode(read_text(path)).ids
    return ids


def _split(ids: list[int], sequence: int) -> tuple[list[int], list[int]]:
    """(calibration, validation): the last fifth validates, at most VALIDATION_TOKENS of it."""
    cut = len(ids) - len(ids) // 5
    if cut < sequence or len(ids) - cut < 2:
        raise DataError(
            f"the text has {len(ids)} tokens; at least {sequence + sequence // 4 + 1} are needed to calibrate and "
            "validate"
        )
    return ids[:cut], ids[cut : cut + VALIDATION_TOKENS]


def _card(source: Mapping[str, Any], report: LmReport) -> dict[str, Any]:
    return {
        "approxrt_version": __version__,
        "source": dict(source),
        "task": "lm",
        "method": {
            "weights": "int8 and int4, rounded by calibration text; activations rotated",
            "plan": report.plan,
        },
        "sizes": {
            "checkpoint_weight_bytes": source["weight_bytes"],
            "f32_weight_bytes": 4 * source["parameters"],
            "artifact_weight_bytes": int(report.chosen["bytes"]),
        },
        "accuracy": {"validation": {"before": report.dense["perplexity"], "after": report.chosen["perplexity"]}},
        "latency": {
            "tokens_per_second": report.chosen["tokens_per_second"],
            "float32_tokens_per_second": report.dense["tokens_per_second"],
        },
    }
