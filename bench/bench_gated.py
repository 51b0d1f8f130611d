"""SwiGLU's product of tokens, SmolLM2's 1,536 wide. Bytes: both inputs read and the result written.

python -m pytest bench/bench_gated.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import TOKENS, sized, time_elements

from approxrt._C import kernels


@sized("gated", *[(tokens, 1536) for tokens in TOKENS])
def test_gated(benchmark: Any, isa: str, shape: tuple[int, int]) -> None:
    gate, up = np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)
    names = {"tokens": shape[0], "width": shape[1]}
    time_elements(benchmark, lambda: kernels.gated(gate, up, "silu", isa), isa, names, gate.size, 12 * gate.size)
