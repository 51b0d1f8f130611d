"""Comparisons across a quantiser.

Where activations are rounded to int8, a value near the edge between two steps falls to either side of it by how a
machine adds up: another CPU, another library, another number of threads. Such a token's outputs are a step of one
input apart, which is no error. What must hold is that few tokens differ, and that none differs by more than steps do.
"""

from __future__ import annotations

import numpy as np

SAME = 2e-3  # of the largest value: what float32 sums in another order do not reach
STEP = 5e-2  # what some flipped roundings of one token do not reach, and a wrong weight does


def assert_equal_but_for_flips(ours: np.ndarray, theirs: np.ndarray, share: float = 0.1) -> None:
    """Rows (tokens or texts) [n, width] agree to `SAME`, all but `share` of them (one at least), which do to `STEP`."""
    assert ours.shape == theirs.shape and np.isfinite(ours).all()
    apart = np.abs(ours - theirs).max(axis=1) / np.abs(theirs).max()
    flipped = apart > SAME
    assert flipped.sum() <= max(1, share * len(apart)), f"{flipped.sum()} of {len(apart)} rows differ"
    assert apart.max() < STEP, f"a row is off by {apart.max():.3g} of the largest value"
