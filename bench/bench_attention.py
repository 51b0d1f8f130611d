"""Attention of one head over one sequence: heads of MiniLM (32) and BERT-base (64). A layer has 12 of them.

Products are those of Q K^T and P V; the keys' transposition and the softmax are in the time but not in the rate. The
head's vectors are contiguous here, while in the engine they are columns of the layer's.

    python -m pytest bench/bench_attention.py --benchmark-only
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from common import HEAD_DIM, LENGTHS, sized, time_products

from approxrt._C import kernels

SHAPES = [(n, d) for d in HEAD_DIM for n in LENGTHS]


def macs(n: int, head_dim: int) -> int:
    """Multiply-adds of both products."""
    return 2 * n * n * head_dim


@sized("attention", *SHAPES, macs=macs)
def test_attention(benchmark: Any, isa: str, shape: tuple[int, int]) -> None:
    n, head_dim = shape
    q, k, v = np.random.default_rng(0).standard_normal((3, n, head_dim), dtype=np.float32)
    names = {"n": n, "head_dim": head_dim}
    call = partial(kernels.attention, q, k, v, head_dim**-0.5, isa)
    time_products(benchmark, call, "f32", isa, names, macs(n, head_dim), macs(n, head_dim))
