"""The largest logit and those near it. Bytes: the logits read, an id written for one in twenty.

python -m pytest bench/bench_shortlist.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import sized, time_elements

from approxrt._C import kernels


@sized("shortlist", (24576,), (49152,))
def test_shortlist(benchmark: Any, isa: str, shape: tuple[int]) -> None:
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    threshold = float(np.quantile(x, 0.95))
    time_elements(
        benchmark, lambda: kernels.shortlist(x, threshold, 0, isa), isa, {"words": shape[0]}, x.size, 4.2 * x.size
    )
