"""Pooling of hidden states in numpy, one text at a time: what the engine does beside a prompt that is left out.

The modes are those of sentence-transformers' Pooling module, which reads the same of a text whose prompt it leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def pool_states(states: np.ndarray, poolings: Sequence[str], skipped: int = 0) -> np.ndarray:
    """Return float64 [modes * hidden] of [tokens, hidden], one mode after another, without the first `skipped` tokens.

    Where none are left the first token stands for `cls`, and sums are 0; `max` is -infinity, as in the original.
    """
    return np.concatenate([_pool(states.astype(np.float64), mode, skipped) for mode in poolings])


def _pool(states: np.ndarray, mode: str, skipped: int) -> np.ndarray:
    left = states[skipped:]
    if mode == "cls":
        return left[0] if len(left) else states[0]
    if mode == "max":
        return left.max(axis=0, initial=-math.inf)
    if mode == "lasttoken":
        return left[-1] if len(left) else np.zeros(states.shape[1])
    # A token's weight is its place in the whole text.
    weights = np.arange(skipped + 1, len(states) + 1) if mode == "weightedmean" else np.ones(len(left))
    total = weights.sum()
    if not total:
        return np.zeros(states.shape[1])
    return weights @ left / (math.sqrt(total) if mode == "mean_sqrt_len_tokens" else total)
