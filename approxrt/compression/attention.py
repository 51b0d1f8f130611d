"""Sign-matching attention for speed: chosen where the task's texts are so long that it pays on this machine.

Kernels are timed by length: `sign_from` is the length from which matching signs is faster than exact attention. If the
task's texts are long enough to save a share of the model's time, the student is calibrated, and layers take sign
matching in the order of what it changes, as long as the outputs stay near the exact ones; training that follows makes
up for most of the change, so more is allowed before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from approxrt.artifact.spec.encoder import MAX_SIGN_DIM, ModelSpec
from approxrt.random import Stream, generator
from approxrt.sign_attention.calibrate import SignKind, calibrate, with_sign_attention
from approxrt.torch_models.encoder import Student, predict

if TYPE_CHECKING:
    from approxrt.compression.pipeline import Compression

KEEPS = (16, 32, 64)
LENGTHS = (128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
FASTER = 0.9  # of exact attention's time, from which sign matching is taken
LEAST_SAVED = 0.03  # of the model's time
CALIBRATED, JUDGED = 12, 32  # texts
# Share of the outputs' variance that may change: at once, and before training.
ALLOWED, ALLOWED_BEFORE_TRAINING = 0.02, 0.2
ROUNDS = 7

Times = Mapping[int, Mapping[int, float]]  # keep (0: exact) -> tokens -> milliseconds of a head


def match_signs(compression: Compression, student: Student) -> dict[str, Any]:
    """Give `student` the layers that are to match signs, calibrated; what was found, or why none are.

    A resumed run finds the choice on disk and only calibrates again.
    """
    known = compression.work.read("attention")
    rows = _long_rows(compression, known["sign_from"] if known else LENGTHS[0])
    if known is None:
        known = _choose(compression, student, rows)
        compression.work.write("attention", known)
    elif known["layers"]:
        calibrate(student, compression.train, rows[:CALIBRATED], known["keep"], compression.options.seed)
        _set(compression, student, known["layers"], SignKind(known["keep"], known["sign_from"]))
    return known


def _choose(compression: Compression, student: Student, rows: np.ndarray) -> dict[str, Any]:
    nothing: dict[str, Any] = {"layers": [], "keep": 0, "sign_from": 0}
    lengths = [len(text) for text in compression.timed]
    heads = signable(student.spec)
    if max(lengths) < LENGTHS[0] or not heads:
        return nothing | {"why": f"texts of at most {max(lengths)} tokens: exact attention is faster"}
    baseline, speedup = compression.baseline(), compression.options.wanted_speedup
    total = compression.timer(student, {})
    if speedup is None or total * speedup <= baseline["ms"]:
        return nothing | {"why": "the speed that was asked for needs no approximate attention"}
    compression.progress(0.0, "timing attention")
    dim = max(student.spec.layers[i].head_dim for i in heads)
    times = time_attention(dim, max(lengths))
    found = nothing | {"times_ms": {str(keep): dict(by) for keep, by in times.items()}, "model_ms": total, "tried": []}
    best = 0.0
    calibrated = None
    for keep in KEEPS:
        start = break_even(times, keep)
        if start is None:
            continue
        per_head = saved_ms(times, keep, start, lengths) / compression.threads
        if per_head * sum(heads.values()) < max(LEAST_SAVED * total, best):
            continue
        if calibrated is None:
            compression.progress(0.0, "calibrating sign matching")
            calibrated = calibrate(student, compression.train, rows[:CALIBRATED], keep, compression.options.seed)
            found["calibration"] = [asdict(layer) for layer in calibrated]
        kind = SignKind(keep, start)
        layers, change = _most_layers(compression, student, rows[-JUDGED:], kind, list(heads))
        saved = per_head * sum(heads[i] for i in layers)
        found["tried"].append({"keep": keep, "sign_from": start, "layers": layers, "change": change, "saved_ms": saved})
        if layers and saved > max(best, LEAST_SAVED * total):
            best = saved
            found |= {"layers": layers, "keep": keep, "sign_from": start, "change": change, "saved_ms": saved}
    _set(compression, student, found["layers"], SignKind(found["keep"], found["sign_from"]))
    if not found["layers"]:
        found["why"] = "exact attention is as fast on the task's texts, or the outputs change too much without it"
    return found


def signable(spec: ModelSpec) -> dict[int, int]:
    """Heads of the layers that can match signs, by layer."""
    return {i: l.num_heads for i, l in enumerate(spec.layers) if l.num_heads and l.head_dim <= MAX_SIGN_DIM}


def time_attention(head_dim: int, longest: int) -> dict[int, dict[int, float]]:
    """Milliseconds of one head beside int8 linears: exact attention (0) and sign matching, each as `keep` -> tokens.

    longest    tokens of the longest text; the grid ends with the first length that is not below it
    """
    from approxrt._C import kernels
    from approxrt.runtime.cpu.engine import forced_isa

    grid = [n for i, n in enumerate(LENGTHS) if not i or LENGTHS[i - 1] < longest]
    times: dict[int, dict[int, float]] = {keep: {} for keep in (0, *KEEPS)}
    scale, isa = head_dim**-0.5, forced_isa()
    for n in grid:
        q, k, v = np.random.default_rng(n).standard_normal((3, n, head_dim), dtype=np.float32)
        runs: dict[int, Callable[[], Any]] = {0: partial(kernels.attention, q, k, v, scale, isa, int16=True)}
        for keep in KEEPS:
            runs[keep] = partial(kernels.sign_attention, q, k, v, scale, keep, isa, rest=True)
        taken: dict[int, list[float]] = {keep: [] for keep in runs}
        for _ in range(ROUNDS):
            for keep, run in runs.items():
                begin = time.perf_counter()
                run()
                taken[keep].append((time.perf_counter() - begin) * 1e3)
        for keep, values in taken.items():
            times[keep][n] = min(values)
    return times


def break_even(times: Times, keep: int) -> int | None:
    """Tokens from which sign matching is faster at every length that was timed; None if it is not at the longest."""
    start = None
    for n in sorted(times[keep], reverse=True):
        if n <= keep or times[keep][n] > FASTER * times[0][n]:
            break
        start = n
    return start


def saved_ms(times: Times, keep: int, start: int, lengths: Sequence[int]) -> float:
    """What a head saves on texts of these lengths, those of under `start` tokens left alone."""
    grid = sorted(times[0])
    gain = [times[0][n] - times[keep][n] for n in grid]
    return float(sum(np.interp(n, grid, gain) for n in lengths if n >= start))


def _long_rows(compression: Compression, start: int) -> np.ndarray:
    """Training examples of at least `start` tokens in a random order; all of them where there are none."""
    order = generator(compression.options.seed, Stream.LONG_TEXTS).permutation(len(compression.train.ids))
    long = order[compression.train.lengths[order] >= start]
    return (long if len(long) else order)[: CALIBRATED + JUDGED]


def _most_layers(
    compression: Compression, student: Student, rows: np.ndarray, kind: SignKind, layers: list[int]
) -> tuple[list[int], float]:
    """(layers that can match signs together, the change of outputs that they make)."""
    train = compression.train
    texts, types = [train.ids[i] for i in rows], [train.types[i] for i in rows]

    def change(chosen: Sequence[int]) -> float:
        _set(compression, student, chosen, kind)
        outputs = predict(student, texts, types, size=4).astype(np.float64)
        return float(np.square(outputs - exact).sum() / max(np.square(exact - exact.mean(0)).sum(), 1e-30))

    _set(compression, student, (), kind)
    exact = predict(student, texts, types, size=4).astype(np.float64)
    allowed = ALLOWED if compression.options.recipe == "one-shot" else ALLOWED_BEFORE_TRAINING
    alone = {}
    for layer in layers:
        compression.progress(0.0, f"sign matching with {kind.keep} keys in layer {layer}")
        alone[layer] = change([layer])
    chosen: list[int] = []
    reached = 0.0
    for layer in sorted(layers, key=alone.__getitem__):
        together = change([*chosen, layer])
        if together > allowed:
            break
        chosen, reached = [*chosen, layer], together
    _set(compression, student, (), kind)
    return sorted(chosen), reached


def _set(compression: Compression, student: Student, layers: Sequence[int], kind: SignKind) -> None:
    with_sign_attention(student, dict.fromkeys(layers, kind), compression.separators() if layers else ())
