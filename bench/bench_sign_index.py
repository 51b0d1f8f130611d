"""Signs and sums beside a cache: of one new token, and of a prompt's.

python -m pytest bench/bench_sign_index.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

from bench_sign_cached_attention import CODES, filled
from common import TOKENS, sized, time_elements

SHAPES = [(kind, tokens) for kind in ("f16", "int8") for tokens in TOKENS]


@sized("sign_index", *SHAPES)
def test_sign_index(benchmark: Any, isa: str, shape: tuple[str, int]) -> None:
    kind, tokens = shape
    cache = filled(kind, max(64, tokens), isa)
    names = {"kind": kind, "tokens": tokens, "signs": CODES}
    moved = tokens * (64 * {"f16": 2, "int8": 1}[kind] + CODES // 8)
    time_elements(benchmark, lambda: cache.index(0, tokens, isa), isa, names, tokens * CODES, moved)
