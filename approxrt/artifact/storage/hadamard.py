"""The matrix of the transform before `down` (`DecoderSpec.down_block`)."""

from __future__ import annotations

import numpy as np


def hadamard(n: int) -> np.ndarray:
    """f64[n, n] of entries +-1/sqrt(n): orthogonal and symmetric; n is a power of 2 (Sylvester's construction)."""
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(n)
