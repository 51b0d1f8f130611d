"""Share what the microbenchmarks of kernels need: shapes, levels, peaks, and what is recorded of a run.

All times are of one call on one core, through the binding: a call from Python and the result's allocation are in them,
one to two microseconds that matter with a token or a 16 x 16 matrix and hardly elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from approxrt import _C
from approxrt._C import kernels

TILE_N, TILE_K = 16, 4
TOKENS = (1, 16, 128, 512)
HIDDEN = (384, 768)  # MiniLM, BERT-base
INNER = (1536, 3072)
HEAD_DIM = (32, 64)
LENGTHS = (16, 64, 128, 512)  # tokens of a sequence, which attention and softmax see
PROJECTIONS = ((384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072), (3072, 768))  # (K, N)
SCALAR_MACS = 1 << 24  # the scalar kernels are definitions: above this many products they are not timed

PEAK_ROUNDS = 100_000  # of the peak's loop, half a millisecond or more

SUPPORTED = tuple(_C.supported_isas())


def levels(family: str) -> list[str]:
    """Levels that the family has a kernel of its own for and that this machine can run."""
    return [row["isa"] for row in _C.kernel_list() if row["family"] == family and row["isa"] in SUPPORTED]


def sized(family: str, *shapes: tuple[Any, ...], macs: Callable[..., float] = lambda *_: 0) -> pytest.MarkDecorator:
    """Parameters isa and shape: each of the family's levels with each shape, the scalar one with small shapes only."""
    cases = [
        pytest.param(isa, shape, id="-".join([isa, "x".join(map(str, shape))]))
        for isa in levels(family)
        for shape in shapes
        if isa != "scalar" or macs(*shape) <= SCALAR_MACS
    ]
    return pytest.mark.parametrize(("isa", "shape"), cases)


class Peak:
    """Register-only multiply-adds at one level, timed again beside every benchmark (10^9 products a second)."""

    def __init__(self, kind: str) -> None:
        # Of float64 a register holds half as many as of float32.
        self.run: Callable[[int, str], int] = {
            "int8": kernels.peak_int8,
            "f32": kernels.peak_f32,
            "f64": lambda rounds, isa: kernels.peak_f32(rounds, isa) // 2,
        }[kind]
        self.session: dict[str, float] = {}

    def measure(self, isa: str) -> float:
        """Best of five timings now; `session` keeps the best of all."""
        best = 0.0
        for _ in range(5):
            begin = time.perf_counter()
            products = self.run(PEAK_ROUNDS, isa)
            best = max(best, products / (time.perf_counter() - begin) / 1e9)
        self.session[isa] = max(best, self.session.get(isa, 0.0))
        return best


PEAKS = {kind: Peak(kind) for kind in ("int8", "f32", "f64")}


def time_products(
    benchmark: Any, call: Callable[[], object], kind: str, isa: str, shape: dict[str, Any], macs: float, dense: float
) -> None:
    """Time a product of `macs` executed multiply-adds, `dense` of them if no weight were left out.

    The share is that of the peak measured just before and just after (the better of the two); the session's best
    is recorded too, because a clock that changes shows as a difference between them.
    """
    peak = PEAKS[kind]
    before = peak.measure(isa) if benchmark.enabled else 0.0
    benchmark(call)
    if not benchmark.enabled:
        return
    beside = max(before, peak.measure(isa))
    seconds = benchmark.stats.stats.median
    rate = macs / seconds / 1e9
    benchmark.extra_info.update(
        isa=isa,
        shape=shape,
        rate=rate,
        rate_unit="GMAC/s",
        dense_equivalent=dense / seconds / 1e9,
        peak=beside,
        peak_of_session=peak.session[isa],
        share_of_peak=rate / beside,
    )


def time_elements(
    benchmark: Any,
    call: Callable[[], object],
    isa: str,
    shape: dict[str, Any],
    elements: int,
    bytes_moved: int,
    copy: Callable[[], object] | None = None,
) -> None:
    """Time an element-wise kernel that must read and write `bytes_moved`.

    `copy` is what the binding does besides: it allocates the result and copies the input, as the kernel works in
    place. It is part of the time, and recorded alone as copy_ns_per_element.
    """
    benchmark(call)
    if not benchmark.enabled:
        return
    seconds = benchmark.stats.stats.median
    benchmark.extra_info.update(
        isa=isa,
        shape=shape,
        rate=bytes_moved / seconds / 1e9,
        rate_unit="GB/s",
        gelements=elements / seconds / 1e9,
        ns_per_element=seconds * 1e9 / elements,
    )
    if copy is not None:
        benchmark.extra_info["copy_ns_per_element"] = best_time(copy) * 1e9 / elements


def best_time(call: Callable[[], object], rounds: int = 5) -> float:
    """Least seconds a call, over rounds of about a millisecond."""
    begin = time.perf_counter()
    call()
    loops = max(1, int(1e-3 / max(time.perf_counter() - begin, 1e-7)))
    best = float("inf")
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(loops):
            call()
        best = min(best, (time.perf_counter() - begin) / loops)
    return best
