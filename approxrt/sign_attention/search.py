"""Find from how many tokens on matching signs is faster than exact attention here, and what it saves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from approxrt.artifact.spec.encoder import MAX_SIGN_DIM, ModelSpec

KEEPS = (16, 32, 64)
LENGTHS = (128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
FASTER = 0.9  # of exact attention's time, from which sign matching is taken
ROUNDS = 7

Times = Mapping[int, Mapping[int, float]]  # keep (0: exact) -> tokens -> milliseconds of a head


def signable(spec: ModelSpec) -> dict[int, int]:
    """Return the heads of the layers that can match signs, by layer; none where scores have a bias besides."""
    if spec.relative_buckets:
        return {}
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


def break_even(exact: Mapping[int, float], matched: Mapping[int, float], keep: int) -> int | None:
    """Return the tokens from which matching is faster at every length that was timed; None if it never is.

    exact, matched   milliseconds by tokens
    """
    start = None
    for n in sorted(matched, reverse=True):
        if n <= keep or matched[n] > FASTER * exact[n]:
            break
        start = n
    return start


def saved_ms(times: Times, keep: int, start: int, lengths: Sequence[int]) -> float:
    """Return what a head saves on texts of these lengths, those of under `start` tokens left alone."""
    grid = sorted(times[0])
    gain = [times[0][n] - times[keep][n] for n in grid]
    return float(sum(np.interp(n, grid, gain) for n in lengths if n >= start))
