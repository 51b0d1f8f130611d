"""Show where our own time goes: the engine's built-in profiler, run on the benchmark's workloads.

Operators are timed on the thread that runs them, so their times are thread time: with t threads a pass of w ms
has t * w ms to give away, and what no operator took is `waiting` (at the ends of parallel steps, and the caller's own
serial work).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from approxrt.runtime.loading import load
from approxrt.runtime.model import Model

if TYPE_CHECKING:
    from rich.table import Table

WAITING = "waiting"


def profile_artifacts(
    artifacts: Sequence[Path], workloads: Sequence[tuple[int, int]], threads: int | None = None, budget: float = 20.0
) -> list[dict[str, Any]]:
    """One document a (artifact, batch x tokens): see `profile_passes`. `budget` in seconds, shared equally."""
    seconds = budget / max(1, len(artifacts) * len(workloads))
    profiles = []
    for path in artifacts:
        model = load(path, device="cpu", threads=threads)
        rng = np.random.default_rng(0)
        for batch, seq in workloads:
            ids = rng.integers(1, model.spec.vocab_size, (batch, seq)).tolist()
            about = {"engine": f"approxrt:{path.name}", "workload": f"{batch} x {seq}", "batch": batch, "seq": seq}
            profiles.append({**about, **profile_passes(model, ids, seconds)})
    return profiles


def profile_passes(model: Model, input_ids: list[list[int]], seconds: float = 1.0) -> dict[str, Any]:
    """Forward passes of `input_ids` for about `seconds`, after a warm-up.

    Returns calls, wall_ms (mean) and plain_ms (median without the profiler, for its cost), isa, threads, and `ops`: op,
    ms (thread time a pass), share of all thread time, calls a pass, gmacs_per_s (products over the operator's thread
    time; None where it multiplies nothing).
    """
    forward = model.forward_tokens if model.spec.per_token else model.forward
    times: list[float] = []
    deadline = time.perf_counter() + seconds / 2
    forward(input_ids)
    while not times or time.perf_counter() < deadline:
        begin = time.perf_counter()
        forward(input_ids)
        times.append(time.perf_counter() - begin)
    # A call of many tokens is several passes of the engine: everything is given by call.
    calls = 0
    with model.profiling() as taken:
        deadline = time.perf_counter() + seconds / 2
        while not calls or time.perf_counter() < deadline:
            forward(input_ids)
            calls += 1
    info = model.info
    all_ns = taken["wall_ns"] * info["threads"]
    ops = [
        {
            "op": op["op"],
            "ms": op["ns"] / calls / 1e6,
            "share": op["ns"] / all_ns,
            "calls": op["calls"] / calls,
            "gmacs_per_s": op["macs"] / op["ns"] if op["macs"] else None,
        }
        for op in taken["ops"]
    ]
    rest = all_ns - sum(op["ns"] for op in taken["ops"])
    ops.append({"op": WAITING, "ms": rest / calls / 1e6, "share": rest / all_ns, "calls": None, "gmacs_per_s": None})
    return {
        "calls": calls,
        "wall_ms": taken["wall_ns"] / calls / 1e6,
        "plain_ms": statistics.median(times) * 1e3,
        "isa": info["isa"],
        "threads": info["threads"],
        "ops": ops,
    }


def table(profile: dict[str, Any]) -> Table:
    """A Rich table of one profile."""
    from rich.table import Table

    about = f"{profile['wall_ms']:.2f} ms a batch, {profile['threads']} threads, {profile['isa']}"
    title = f"{profile['engine']}, {profile['workload']}: {about}"
    out = Table(title=title, title_justify="left")
    for column in ("operator", "thread ms", "share", "GMAC/s a thread"):
        out.add_column(column, justify="left" if column == "operator" else "right")
    for op in profile["ops"]:
        rate = "-" if op["gmacs_per_s"] is None else f"{op['gmacs_per_s']:.1f}"
        out.add_row(op["op"], f"{op['ms']:.3f}", f"{100 * op['share']:.1f} %", rate)
    return out
