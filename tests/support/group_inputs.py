"""Inputs of products with scales of groups."""

from __future__ import annotations

import numpy as np


def activations(rng: np.random.Generator, rows: int, k: int) -> np.ndarray:
    """Columns of all magnitudes, so that groups have every shift, and some zeros."""
    x = rng.standard_normal((rows, k)) * np.exp2(rng.integers(-12, 3, (1, k)))
    return np.where(rng.random((rows, k)) < 0.1, 0, x).astype(np.float32)
