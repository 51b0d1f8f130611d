"""Sign-matching attention of one head beside dense attention: ours in float32 and with 16-bit products, and torch's.

    python -m pytest bench/bench_sign_attention.py --benchmark-only
    python bench/bench_sign_attention.py --out bench/results/sign-attention.json

The second times all of them in turns on one core for n = 64 to 8192 keys and as many queries, and says where sign
matching breaks even. Inputs are drawn at random: times do not depend on values, and errors are those of values without
any pattern, the hardest case; what a trained model loses is another question.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import HEAD_DIM, sized, time_products

from approxrt._C import kernels

KEEP = (16, 32, 64, 128)
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
SHAPES = [(n, d, keep) for d in HEAD_DIM for n in (64, 512, 2048) for keep in (16, 64) if keep < n]
SECONDS = 1.5  # of timing a shape, at most about


def macs(n: int, head_dim: int, keep: int) -> int:
    """Multiply-adds of both products over the kept keys; counting signs is not among them."""
    return 2 * n * (keep + 1) * head_dim


def draw(n: int, head_dim: int) -> np.ndarray:
    """q, k, v: f32[3, n, head_dim]."""
    return np.random.default_rng(0).standard_normal((3, n, head_dim), dtype=np.float32)


@sized("sign_attention", *SHAPES, macs=lambda n, d, keep: n * n * d)
def test_sign_attention(benchmark: Any, isa: str, shape: tuple[int, int, int]) -> None:
    n, head_dim, keep = shape
    q, k, v = draw(n, head_dim)
    names = {"n": n, "head_dim": head_dim, "keep": keep}
    call = partial(kernels.sign_attention, q, k, v, head_dim**-0.5, keep, isa, rest=True)
    time_products(benchmark, call, "f32", isa, names, macs(*shape), 2 * n * n * head_dim)


def contestants(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> dict[str, Callable[[], Any]]:
    """By name, what is timed; sign matching by how many keys a query keeps beside its own."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    scale = q.shape[1] ** -0.5
    tensors = [torch.from_numpy(x)[None, None] for x in (q, k, v)]
    runs: dict[str, Callable[[], Any]] = {
        "dense f32": partial(kernels.attention, q, k, v, scale),
        "dense int16": partial(kernels.attention, q, k, v, scale, int16=True),
        "torch SDPA f32": partial(scaled_dot_product_attention, *tensors),
    }
    for keep in KEEP:
        if keep < len(q):
            runs[f"sign {keep}"] = partial(kernels.sign_attention, q, k, v, scale, keep, rest=True)
    return runs


def in_turns(runs: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Milliseconds a call: median, p20 and p80 over rounds in which each runs once."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    begin = time.perf_counter()
    while len(next(iter(samples.values()))) < 5 or time.perf_counter() - begin < SECONDS:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            samples[name].append((time.perf_counter() - start) * 1e3)
    points = {"median_ms": 50, "p20_ms": 20, "p80_ms": 80}
    return {name: {key: float(np.percentile(x, p)) for key, p in points.items()} for name, x in samples.items()}


def main() -> None:
    import torch

    from approxrt.benchmark.report import git_commit, machine, versions

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    known = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for head_dim in HEAD_DIM:
        for n in LENGTHS:
            q, k, v = draw(n, head_dim)
            times = in_turns(contestants(q, k, v))
            exact = kernels.attention(q, k, v, head_dim**-0.5)
            errors = {}
            for name in times:
                if name.startswith("sign"):
                    out, _ = kernels.sign_attention(q, k, v, head_dim**-0.5, int(name.split()[1]), rest=True)
                    errors[name] = float(np.linalg.norm(out - exact) / np.linalg.norm(exact))
            rows.append({"n": n, "head_dim": head_dim, "times": times, "relative_error": errors})
            dense = min(times[name]["median_ms"] for name in ("dense f32", "dense int16"))
            ratios = {name: round(dense / t["median_ms"], 2) for name, t in times.items()}
            print(f"n {n}, head_dim {head_dim}: times faster than our fastest dense: {ratios}", flush=True)
    command = " ".join([Path(sys.executable).name, *sys.argv])
    doc = {
        "schema": "approxrt.sign-attention/1",
        "command": command,
        "commit": git_commit(),
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }
    if known.out:
        known.out.write_text(json.dumps(doc, indent=1) + "\n")


if __name__ == "__main__":
    main()
