"""Sum of word, position and type embeddings: float32 and int8 word tables of BERT's vocabulary, 384 and 768 wide.

Bytes: the three rows read and the sum written, a token. The same tokens are looked up in every call, so their rows
come from a cache.

    python -m pytest bench/bench_embedding.py --benchmark-only
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from common import HIDDEN, TOKENS, sized, time_elements

from approxrt._C import kernels

VOCABULARY, POSITIONS = 30522, 512
SHAPES = [(table, tokens, width) for table in ("f32", "int8") for width in HIDDEN for tokens in TOKENS]


@lru_cache(maxsize=4)
def words(table: str, width: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The word table and, of the int8 one, a scale a row."""
    rng = np.random.default_rng(0)
    if table == "f32":
        return rng.random((VOCABULARY, width), dtype=np.float32), None
    return rng.integers(-127, 128, (VOCABULARY, width), dtype=np.int8), np.full(VOCABULARY, 1e-3, np.float32)


@sized("embedding", *SHAPES)
def test_embedding(benchmark: Any, isa: str, shape: tuple[str, int, int]) -> None:
    table, tokens, width = shape
    rng = np.random.default_rng(1)
    word, scale = words(table, width)
    position = rng.random((POSITIONS, width), dtype=np.float32)
    kinds = rng.random((2, width), dtype=np.float32)
    ids = rng.integers(0, VOCABULARY, tokens, dtype=np.int32)
    positions, types = np.arange(tokens, dtype=np.int32), np.zeros(tokens, np.int32)
    names = {"table": table, "tokens": tokens, "width": width}
    elements = tokens * width
    time_elements(
        benchmark,
        lambda: kernels.embedding(word, scale, position, kinds, ids, positions, types, isa),
        isa,
        names,
        elements,
        elements * (word.itemsize + 12),
    )
