"""Sum of word, position and type embeddings: tables in float32, int8 and int4 of BERT's vocabulary, 384 and 768 wide.

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
SHAPES = [(table, tokens, width) for table in ("f32", "int8", "int4") for width in HIDDEN for tokens in TOKENS]


@lru_cache(maxsize=4)
def words(table: str, width: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The embedding table, of int8 and int4 a scale a row, and of int4 a group scale for 32 columns."""
    rng = np.random.default_rng(0)
    if table == "f32":
        return rng.random((VOCABULARY, width), dtype=np.float32), None, None
    scale = np.full(VOCABULARY, 1e-3, np.float32)
    if table == "int8":
        return rng.integers(-127, 128, (VOCABULARY, width), dtype=np.int8), scale, None
    nibbles = rng.integers(1, 16, (VOCABULARY, width // 2), dtype=np.uint8) * np.uint8(17)
    return nibbles, scale, rng.integers(1, 256, (VOCABULARY, width // 32), dtype=np.uint8)


@sized("embedding", *SHAPES)
def test_embedding(benchmark: Any, isa: str, shape: tuple[str, int, int]) -> None:
    table, tokens, width = shape
    rng = np.random.default_rng(1)
    word, scale, groups = words(table, width)
    position = rng.random((POSITIONS, width), dtype=np.float32)
    kinds = rng.random((2, width), dtype=np.float32)
    ids = rng.integers(0, VOCABULARY, tokens, dtype=np.int32)
    positions, types = np.arange(tokens, dtype=np.int32), np.zeros(tokens, np.int32)
    names = {"table": table, "tokens": tokens, "width": width}
    elements = tokens * width
    time_elements(
        benchmark,
        lambda: kernels.embedding(word, scale, position, kinds, ids, positions, types, isa, groups),
        isa,
        names,
        elements,
        tokens * (word.nbytes // VOCABULARY) + elements * 12,
    )
