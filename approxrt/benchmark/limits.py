"""The least time that a model's products take: multiply-adds over this machine's peak, measured in the same run.

Counted is what a pass has to execute: kept tiles of the linears for every token, and attention's two products; with
CLS pooling the last attention's queries and all that follows for first tokens only. Attention counts at the peak
of the linears, int8 or f32, whatever it is computed in.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

PEAK_ROUNDS = 1_000_000  # of the peak's loop: some milliseconds


def peak_gmacs(threads: int, isa: str = "") -> dict[str, float]:
    """10^9 register-only products a second of `threads` cores at once, by kind: the best of a few short runs."""
    from approxrt._C import kernels

    return {
        kind: max(_rate(run, threads, isa) for _ in range(3))
        for kind, run in (("int8", kernels.peak_int8), ("f32", kernels.peak_f32))
    }


def _rate(run: Any, threads: int, isa: str) -> float:
    barrier = threading.Barrier(threads)
    spans: list[tuple[float, float]] = []
    products: list[int] = []

    def work() -> None:
        barrier.wait()
        begin = time.perf_counter()
        done = run(PEAK_ROUNDS, isa)
        spans.append((begin, time.perf_counter()))
        products.append(done)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(products) / (max(end for _, end in spans) - min(begin for begin, _ in spans)) / 1e9


def products(
    info: dict[str, Any], cls_pooling: bool, heads_width: Sequence[int], lengths: Sequence[int]
) -> dict[str, float]:
    """Multiply-adds by kind, "int8" and "f32", that a model of `info` (Model.info) needs for sequences of `lengths`.

    heads_width   heads x head size of each layer, 0 where attention is removed
    """
    tokens, texts = sum(lengths), len(lengths)
    last = max((i for i, width in enumerate(heads_width) if width), default=-1)
    out = {"int8": 0.0, "f32": 0.0}
    for linear in info["linears"]:
        rows = texts if _once_a_text(linear["name"], cls_pooling, last) else tokens
        out["f32" if linear["kind"] == "f32" else "int8"] += rows * linear["macs"]
    squares = sum(n * n for n in lengths)
    attention = sum(
        2.0 * width * (tokens if cls_pooling and i == last else squares) for i, width in enumerate(heads_width)
    )
    out["int8" if out["int8"] > out["f32"] else "f32"] += attention
    return out


def _once_a_text(name: str, cls_pooling: bool, last: int) -> bool:
    """Tell whether a linear runs for first tokens only; `last` is the last layer with attention."""
    part, *rest = name.split(".")
    if part == "head":
        return True
    if part != "layers" or not cls_pooling:
        return False
    layer = int(rest[0])
    return layer > last or (layer == last and rest[-1] not in ("key", "value"))


def limit_ms(work: dict[str, float], peaks: dict[str, float]) -> float:
    """Milliseconds that `work` takes at the peaks."""
    return sum(work[kind] / peaks[kind] / 1e6 for kind in work)
