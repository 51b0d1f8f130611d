"""Sign-matching attention for speed: chosen where the task's texts are so long that it pays on this machine.

Kernels are timed by length: `sign_from` is the length from which matching signs is faster than exact attention. If the
task's texts are long enough to save a share of the model's time, the model is calibrated, and layers take sign
matching in the order of what it changes, as long as the outputs stay near the exact ones; training that follows makes
up for most of the change, so more is allowed before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from approxrt.compression.families.encoder import EncoderFamily
from approxrt.compression.families.encoder_inputs import separators
from approxrt.compression.records import SignChoice
from approxrt.random import Stream, generator
from approxrt.sign_attention.calibrate import SignKind, calibrate, with_sign_attention
from approxrt.sign_attention.search import KEEPS, LENGTHS, break_even, saved_ms, signable, time_attention
from approxrt.torch_models.encoder import TorchEncoder, predict

LEAST_SAVED = 0.03  # of the model's time
CALIBRATED, JUDGED = 12, 32  # texts
# Share of the outputs' variance that may change: at once, and before training.
ALLOWED, ALLOWED_BEFORE_TRAINING = 0.02, 0.2


def match_signs(family: EncoderFamily, model: TorchEncoder) -> SignChoice:
    """Give `model` the layers that are to match signs, calibrated; what was found, or why none are.

    A resumed run finds the choice on disk and only calibrates again.
    """
    work = family.job.work
    known = work.load("signs", SignChoice)
    rows = _long_rows(family, known.sign_from if known else LENGTHS[0])
    if known is None:
        known = _choose(family, model, rows)
        work.save("signs", known)
    elif known.layers:
        calibrate(model, family.inputs.pruned.train, rows[:CALIBRATED], known.keep, family.job.seed)
        _set(family, model, known.layers, SignKind(known.keep, known.sign_from))
    return known


def _choose(family: EncoderFamily, model: TorchEncoder, rows: np.ndarray) -> SignChoice:
    job, train = family.job, family.inputs.pruned.train
    lengths = [len(text) for text in family.inputs.pruned.workload]
    heads = signable(model.spec)
    if model.spec.relative_buckets:
        return SignChoice(found={"why": "attention is biased by relative position, which matching signs leaves out"})
    if max(lengths) < LENGTHS[0] or not heads:
        return SignChoice(found={"why": f"texts of at most {max(lengths)} tokens: exact attention is faster"})
    speedup, total = job.options.wanted_speedup, family.timer(model, {})
    if speedup is None or total * speedup <= family.baseline().ms:
        return SignChoice(found={"why": "the speed that was asked for needs no approximate attention"})
    job.progress(0.0, "timing attention")
    dim = max(model.spec.layers[i].head_dim for i in heads)
    times = time_attention(dim, max(lengths))
    tried: list[dict[str, Any]] = []
    found: dict[str, Any] = {"times_ms": {str(keep): dict(by) for keep, by in times.items()}, "model_ms": total}
    best, chosen = 0.0, SignChoice()
    calibrated = None
    for keep in KEEPS:
        start = break_even(times[0], times[keep], keep)
        if start is None:
            continue
        per_head = saved_ms(times, keep, start, lengths) / job.threads
        if per_head * sum(heads.values()) < max(LEAST_SAVED * total, best):
            continue
        if calibrated is None:
            job.progress(0.0, "calibrating sign matching")
            calibrated = calibrate(model, train, rows[:CALIBRATED], keep, job.seed)
            found["calibration"] = [asdict(layer) for layer in calibrated]
        kind = SignKind(keep, start)
        layers, change = _most_layers(family, model, rows[-JUDGED:], kind, list(heads))
        saved = per_head * sum(heads[i] for i in layers)
        tried.append({"keep": keep, "sign_from": start, "layers": layers, "change": change, "saved_ms": saved})
        if layers and saved > max(best, LEAST_SAVED * total):
            best = saved
            found |= {"change": change, "saved_ms": saved}
            chosen = SignChoice(tuple(layers), keep, start)
    _set(family, model, chosen.layers, SignKind(chosen.keep, chosen.sign_from))
    if not chosen.layers:
        found["why"] = "exact attention is as fast on the task's texts, or the outputs change too much without it"
    return SignChoice(chosen.layers, chosen.keep, chosen.sign_from, found | {"tried": tried})


def _long_rows(family: EncoderFamily, start: int) -> np.ndarray:
    """Training examples of at least `start` tokens in a random order; all of them where there are none."""
    order = generator(family.job.seed, Stream.LONG_TEXTS).permutation(len(family.inputs.pruned.train.ids))
    long = order[family.inputs.pruned.train.lengths[order] >= start]
    return (long if len(long) else order)[: CALIBRATED + JUDGED]


def _most_layers(
    family: EncoderFamily, model: TorchEncoder, rows: np.ndarray, kind: SignKind, layers: list[int]
) -> tuple[list[int], float]:
    """Return (layers that can match signs together, the change of outputs that they make)."""
    train = family.inputs.pruned.train
    texts, types = [train.ids[i] for i in rows], [train.types[i] for i in rows]

    def change(chosen: Sequence[int]) -> float:
        _set(family, model, chosen, kind)
        outputs = predict(model, texts, types, size=4).astype(np.float64)
        return float(np.square(outputs - exact).sum() / max(np.square(exact - exact.mean(0)).sum(), 1e-30))

    _set(family, model, (), kind)
    exact = predict(model, texts, types, size=4).astype(np.float64)
    allowed = ALLOWED if family.job.options.recipe == "one-shot" else ALLOWED_BEFORE_TRAINING
    alone = {}
    for layer in layers:
        family.job.progress(0.0, f"sign matching with {kind.keep} keys in layer {layer}")
        alone[layer] = change([layer])
    chosen: list[int] = []
    reached = 0.0
    for layer in sorted(layers, key=alone.__getitem__):
        together = change([*chosen, layer])
        if together > allowed:
            break
        chosen, reached = [*chosen, layer], together
    _set(family, model, (), kind)
    return sorted(chosen), reached


def _set(family: EncoderFamily, model: TorchEncoder, layers: Sequence[int], kind: SignKind) -> None:
    with_sign_attention(model, dict.fromkeys(layers, kind), separators(family.inputs.tokenizer_json) if layers else ())
