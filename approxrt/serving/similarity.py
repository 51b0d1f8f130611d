"""Measure how alike embeddings are, by the functions that sentence-transformers names."""

from __future__ import annotations

from typing import Any

import numpy as np

from approxrt.artifact.spec.encoder import SIMILARITIES
from approxrt.errors import InputError


def similarity_name(value: Any) -> str:
    """A function's name from a str or a member of the original's enumeration. Raises InputError."""
    name = getattr(value, "value", value)
    if name not in SIMILARITIES:
        raise InputError(f"similarity_fn_name is {value!r}; it must be one of {', '.join(SIMILARITIES)}")
    return str(name)


def similarity(name: str, a: Any, b: Any) -> np.ndarray:
    """float32 [len(a), len(b)] of embeddings [n, width] or [width]: cosines, products, or negative distances."""
    x, y = _rows(a), _rows(b)
    if name in ("cosine", "dot"):
        x, y = (_normalized(x), _normalized(y)) if name == "cosine" else (x, y)
        return x @ y.T
    # A row of distances at a time: all differences at once would take as much memory as both sides multiplied.
    return np.stack([-_distances(name, y, row) for row in x]) if len(x) else np.zeros((0, len(y)), np.float32)


def similarity_pairwise(name: str, a: Any, b: Any) -> np.ndarray:
    """float32 [n] of embeddings in the same places. Raises InputError for different numbers of them."""
    x, y = _rows(a), _rows(b)
    if x.shape != y.shape:
        raise InputError(f"embeddings of shapes {x.shape} and {y.shape} cannot be compared pair by pair")
    if name in ("cosine", "dot"):
        x, y = (_normalized(x), _normalized(y)) if name == "cosine" else (x, y)
        return np.einsum("ij,ij->i", x, y)
    return -_distances(name, x, y)


def _distances(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    difference = np.abs(a - b)
    total: np.ndarray = difference.sum(axis=1) if name == "manhattan" else np.sqrt(np.square(difference).sum(axis=1))
    return total


def _rows(embeddings: Any) -> np.ndarray:
    if isinstance(embeddings, list):
        embeddings = [np.asarray(row, np.float32) for row in embeddings]
    return np.atleast_2d(np.asarray(embeddings, np.float32))


def _normalized(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
