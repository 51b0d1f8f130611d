"""Turn logits into scores, by the names that Hugging Face's libraries use."""

from __future__ import annotations

import numpy as np

from approxrt.errors import InputError

ACTIVATIONS = ("none", "identity", "sigmoid", "softmax", "tanh")


def apply_activation(logits: np.ndarray, name: str) -> np.ndarray:
    """float32 [n, labels] -> float [n, labels]: as they are ("none", "identity"), else float64 by the named function.

    Raises InputError for another name.
    """
    if name in ("none", "identity"):
        return logits
    wide = logits.astype(np.float64)
    if name == "sigmoid":
        # exp of a negative number only: no overflow for either sign.
        small = np.exp(-np.abs(wide))
        return np.where(wide >= 0, 1.0 / (1.0 + small), small / (1.0 + small))
    if name == "softmax":
        shifted = np.exp(wide - wide.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)
    if name == "tanh":
        return np.tanh(wide)
    raise InputError(f"activation {name!r} is unknown; known: {', '.join(ACTIVATIONS)}")
